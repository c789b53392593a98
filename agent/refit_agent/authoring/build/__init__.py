"""From an ONNX file to weight-free plans, where a full TensorRT is installed; the way in is `engines.build_engines`.

engines -> options, builders, model_checks (what is asked, who builds, what cannot work)
        -> launch == one process per plan ==> builder_worker -> builder, weight_list
        -> explicit_map, zeros (every weight accounted for) -> record (what the build leaves beside the plan)
"""
