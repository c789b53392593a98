"""In place of NVIDIA's cuda-bindings, of which 7.8 MB would be needed for thirteen calls: see `cuda.bindings.driver`."""
