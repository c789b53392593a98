"""What the parser does with an operator, as far as names depend on it."""

from __future__ import annotations

_NO_CONSTANT = """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool Cast Ceil Concat Constant Conv
    ConvTranspose Cos Cosh DepthToSpace Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather
    GatherElements GatherND GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity If
    LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul Max MaxPool Min Mul Neg Not Or PRelu Pow
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize Round Scan Selu Shape Sigmoid Sign Sin Sinh Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu TopK
    Transpose Unsqueeze Upsample Where Xor
"""

# Import without a constant of the parser's own that gets a name. Inferred from weight_naming
# section 6 and the sample engines; Pad and Mod are known to make several and must stay out.
MAKES_NO_CONSTANT = frozenset(_NO_CONSTANT.split())

_OTHERS = """
BatchNormalization BlackmanWindow CastLike Celu Clip ConstantOfShape CumSum DeformConv DequantizeLinear Einsum
EyeLike GRU Gelu Gemm GlobalLpPool GridSample GroupNormalization HammingWindow HannWindow HardSwish
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LpNormalization LpPool Mean
MeanVarianceNormalization Mish Mod NonMaxSuppression NonZero OneHot Pad QuantizeLinear RNN
RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range ReverseSequence RoiAlign STFT
ScatterElements ScatterND Shrink Swish Trilu Unique
"""

# Operators that the parser imports itself, whatever their domain: it looks its own importers up by
# the operator's name before the model's functions (parseNode in ModelImporter.cpp, read in three
# releases of 10.x), so a function of such a name is never expanded. Not complete for every release.
IMPORTED = MAKES_NO_CONSTANT | frozenset(_OTHERS.split())
