"""The ops that bnstat runs without `--trust`.

The list names the ops that inference and training graphs need and that only compute with values
in memory. It refuses everything else, so an op that a later TensorFlow adds is refused too. The
list leaves out every op that can touch a file, a dataset, the network, another process, Python or
the terminal. `DecodeProtoV2`, `FixedUnigramCandidateSampler` and `Skipgram` are examples: each
has an attribute that names a file.

A graph has to be checked before TensorFlow sees it: even the import of a graph runs stateless ops
such as `ReadFile`, because shape inference evaluates the inputs that decide a shape.

Sources: tensorflow/core/ops/*.cc; EvaluateConstantTensor in
tensorflow/core/common_runtime/eval_const_tensor.cc.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnstat.errors import UnsupportedError
from bnstat.estimate.running.flat_graph import all_nodes, called_by, op_of, pruned

_FAMILIES: Mapping[str, str] = {
    "graph structure": """
        Assert CheckNumerics Const ControlTrigger DeepCopy DeviceIndex EnsureShape
        FakeParam GuaranteeConst HostConst Identity IdentityN NoOp Placeholder
        PlaceholderV2 PlaceholderWithDefault PreventGradient Snapshot StopGradient
    """,
    "control flow": """
        Case Enter Exit For If LoopCond MapDefun Merge NextIteration PartitionedCall
        RefEnter RefExit RefIdentity RefMerge RefNextIteration RefSelect RefSwitch Select
        SelectV2 StatefulPartitionedCall StatelessCase StatelessIf StatelessWhile Switch
        While
    """,
    "arrays": """
        BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastGradientArgs
        BroadcastTo Cast Concat ConcatOffset ConcatV2 ConjugateTranspose
        DenseToDenseSetOperation DenseToSparseSetOperation DepthToSpace Diag DiagPart
        DynamicPartition DynamicStitch EditDistance Empty ExpandDims ExtractImagePatches
        ExtractVolumePatches Fill Fingerprint Gather GatherNd GatherV2 InplaceAdd
        InplaceSub InplaceUpdate InvertPermutation LinSpace ListDiff LowerBound
        MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3
        MatrixDiagV2 MatrixDiagV3 MatrixSetDiag MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad
        MirrorPadGrad OneHot OnesLike Pack Pad PadV2 ParallelConcat ParallelDynamicStitch
        Range Rank Reshape Reverse ReverseSequence ReverseV2 Roll ScatterNd
        ScatterNdNonAliasingAdd SetSize Shape ShapeN Size Slice SpaceToBatch
        SpaceToBatchND SpaceToDepth SparseToSparseSetOperation Split SplitV Squeeze
        StridedSlice StridedSliceGrad TensorScatterAdd TensorScatterMax TensorScatterMin
        TensorScatterSub TensorScatterUpdate TensorStridedSliceUpdate Tile TileGrad
        Transpose Unique UniqueV2 UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex
        UpperBound Where ZerosLike
    """,
    "mathematics": """
        Abs AccumulateNV2 Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax
        ArgMin Asin Asinh Atan Atan2 Atanh BandedTriangularSolve BatchMatMul BatchMatMulV2
        BatchMatMulV3 BesselI0 BesselI0e BesselI1 BesselI1e BesselJ0 BesselJ1 BesselK0
        BesselK0e BesselK1 BesselK1e BesselY0 BesselY1 Betainc Bincount BitwiseAnd
        BitwiseOr BitwiseXor Bucketize Ceil Cholesky CholeskyGrad ClipByValue Complex
        ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp Dawsn
        DenseBincount Digamma Div DivNoNan Eig Einsum Equal Erf Erfc Erfinv EuclideanNorm
        Exp Expint Expm1 FFT FFT2D FFT3D FFTND Floor FloorDiv FloorMod FresnelCos
        FresnelSin Greater GreaterEqual HistogramFixedWidth IFFT IFFT2D IFFT3D IFFTND
        IRFFT IRFFT2D IRFFT3D IRFFTND Igamma IgammaGradA Igammac Imag Inv InvGrad Invert
        IsFinite IsInf IsNan IsotonicRegression L2Loss LeftShift Less LessEqual Lgamma Log
        Log1p LogMatrixDeterminant LogicalAnd LogicalNot LogicalOr Lu MatMul
        MatrixDeterminant MatrixExponential MatrixInverse MatrixLogarithm MatrixSolve
        MatrixSolveLs MatrixSquareRoot MatrixTriangularSolve Max Maximum Mean Min Minimum
        Mod Mul MulNoNan Ndtri Neg NextAfter NotEqual NthElement Polygamma PopulationCount
        Pow Prod Qr RFFT RFFT2D RFFT3D RFFTND Real RealDiv Reciprocal ReciprocalGrad
        RightShift Rint Round Rsqrt RsqrtGrad SegmentMax SegmentMaxV2 SegmentMean
        SegmentMin SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum SegmentSumV2
        SelfAdjointEig SelfAdjointEigV2 Sigmoid SigmoidGrad Sign Sin Sinh SobolSample
        Spence Sqrt SqrtGrad Square SquaredDifference Sub Sum Svd Tan Tanh TanhGrad
        TridiagonalMatMul TridiagonalSolve TruncateDiv TruncateMod UnsortedSegmentJoin
        UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy
        Xlog1py Xlogy Zeta
    """,
    "neural networks": """
        AllCandidateSampler ApproxTopK AvgPool AvgPool3D AvgPool3DGrad AvgPoolGrad
        BatchNormWithGlobalNormalization BatchNormWithGlobalNormalizationGrad BiasAdd
        BiasAddGrad BiasAddV1 BlockLSTM BlockLSTMGrad BlockLSTMGradV2 BlockLSTMV2
        CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 ComputeAccidentalHits Conv
        Conv2D Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv2DBackpropInput
        Conv2DBackpropInputV2 Conv3D Conv3DBackpropFilter Conv3DBackpropFilterV2
        Conv3DBackpropInput Conv3DBackpropInputV2 CudnnRNN CudnnRNNCanonicalToParams
        CudnnRNNCanonicalToParamsV2 CudnnRNNParamsSize CudnnRNNV2 CudnnRNNV3
        DataFormatDimMap DataFormatVecPermute DepthwiseConv2dNative
        DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Dilation2D
        Dilation2DBackpropFilter Dilation2DBackpropInput Elu EluGrad FractionalAvgPool
        FractionalAvgPoolGrad FractionalMaxPool FractionalMaxPoolGrad FusedBatchNorm
        FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 FusedBatchNormV2
        FusedBatchNormV3 FusedPadConv2D FusedResizeAndPadConv2D GRUBlockCell
        GRUBlockCellGrad InTopK InTopKV2 LRN LRNGrad LSTMBlockCell LSTMBlockCellGrad
        LeakyRelu LeakyReluGrad LearnedUnigramCandidateSampler LogSoftmax
        LogUniformCandidateSampler MaxPool MaxPool3D MaxPool3DGrad MaxPool3DGradGrad
        MaxPoolGrad MaxPoolGradGrad MaxPoolGradGradV2 MaxPoolGradGradWithArgmax
        MaxPoolGradV2 MaxPoolGradWithArgmax MaxPoolV2 MaxPoolWithArgmax Relu Relu6
        Relu6Grad ReluGrad Selu SeluGrad Softmax SoftmaxCrossEntropyWithLogits Softplus
        SoftplusGrad Softsign SoftsignGrad SparseSoftmaxCrossEntropyWithLogits TopK
        TopKUnique TopKV2 TopKWithUnique UniformCandidateSampler _FusedBatchNormEx
        _FusedConv2D _FusedConv3D _FusedDepthwiseConv2dNative _FusedMatMul
    """,
    "quantization": """
        Dequantize FakeQuantWithMinMaxArgs FakeQuantWithMinMaxArgsGradient
        FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsGradient
        FakeQuantWithMinMaxVarsPerChannel FakeQuantWithMinMaxVarsPerChannelGradient
        QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3
        QuantizeAndDequantizeV4 QuantizeAndDequantizeV4Grad QuantizeDownAndShrinkRange
        QuantizeV2 QuantizedAdd QuantizedAvgPool QuantizedBatchNormWithGlobalNormalization
        QuantizedBiasAdd QuantizedConcat QuantizedConcatV2 QuantizedConv2D
        QuantizedConv2DAndRelu QuantizedConv2DAndReluAndRequantize
        QuantizedConv2DAndRequantize QuantizedConv2DPerChannel QuantizedConv2DWithBias
        QuantizedConv2DWithBiasAndRelu QuantizedConv2DWithBiasAndReluAndRequantize
        QuantizedConv2DWithBiasAndRequantize
        QuantizedConv2DWithBiasSignedSumAndReluAndRequantize
        QuantizedConv2DWithBiasSumAndRelu QuantizedConv2DWithBiasSumAndReluAndRequantize
        QuantizedDepthwiseConv2D QuantizedDepthwiseConv2DWithBias
        QuantizedDepthwiseConv2DWithBiasAndRelu
        QuantizedDepthwiseConv2DWithBiasAndReluAndRequantize QuantizedInstanceNorm
        QuantizedMatMul QuantizedMatMulWithBias QuantizedMatMulWithBiasAndDequantize
        QuantizedMatMulWithBiasAndRelu QuantizedMatMulWithBiasAndReluAndRequantize
        QuantizedMatMulWithBiasAndRequantize QuantizedMaxPool QuantizedMul QuantizedRelu
        QuantizedRelu6 QuantizedReluX QuantizedReshape QuantizedResizeBilinear
        RequantizationRange RequantizationRangePerChannel Requantize RequantizePerChannel
        UniformDequantize UniformQuantize UniformQuantizedAdd UniformQuantizedClipByValue
        UniformQuantizedConvolution UniformQuantizedConvolutionHybrid UniformQuantizedDot
        UniformQuantizedDotHybrid UniformRequantize
    """,
    "sparse and ragged tensors": """
        CSRSparseMatrixComponents CSRSparseMatrixToDense CSRSparseMatrixToSparseTensor
        DenseCountSparseOutput DenseToCSRSparseMatrix DeserializeManySparse
        DeserializeSparse RaggedBincount RaggedCountSparseOutput RaggedCross
        RaggedFillEmptyRows RaggedFillEmptyRowsGrad RaggedGather RaggedRange
        RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor
        RaggedTensorToVariant RaggedTensorToVariantGradient SerializeManySparse
        SerializeSparse SparseAdd SparseAddGrad SparseBincount SparseConcat
        SparseCountSparseOutput SparseCross SparseCrossHashed SparseCrossV2
        SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows
        SparseFillEmptyRowsGrad SparseMatMul SparseMatrixAdd SparseMatrixMatMul
        SparseMatrixMul SparseMatrixNNZ SparseMatrixOrderingAMD SparseMatrixSoftmax
        SparseMatrixSoftmaxGrad SparseMatrixSparseCholesky SparseMatrixSparseMatMul
        SparseMatrixTranspose SparseMatrixZeros SparseReduceMax SparseReduceMaxSparse
        SparseReduceSum SparseReduceSumSparse SparseReorder SparseReshape
        SparseSegmentMean SparseSegmentMeanGrad SparseSegmentMeanGradV2
        SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNGrad
        SparseSegmentSqrtNGradV2 SparseSegmentSqrtNWithNumSegments SparseSegmentSum
        SparseSegmentSumGrad SparseSegmentSumGradV2 SparseSegmentSumWithNumSegments
        SparseSlice SparseSliceGrad SparseSoftmax SparseSparseMaximum SparseSparseMinimum
        SparseSplit SparseTensorDenseAdd SparseTensorDenseMatMul
        SparseTensorToCSRSparseMatrix SparseToDense
    """,
    "images and sound": """
        AdjustContrast AdjustContrastv2 AdjustHue AdjustSaturation AudioMicrofrontend
        AudioSpectrogram CombinedNonMaxSuppression CropAndResize CropAndResizeGradBoxes
        CropAndResizeGradImage DecodeAndCropJpeg DecodeBmp DecodeGif DecodeImage
        DecodeJpeg DecodeJxl DecodePng DecodeWav DecodeWebP DrawBoundingBoxes
        DrawBoundingBoxesV2 EncodeJpeg EncodeJpegVariableQuality EncodePng EncodeWav
        ExtractGlimpse ExtractGlimpseV2 ExtractJpegShape GenerateBoundingBoxProposals
        HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3 Mfcc
        NonMaxSuppression NonMaxSuppressionV2 NonMaxSuppressionV3 NonMaxSuppressionV4
        NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RGBToHSV ResizeArea
        ResizeBicubic ResizeBicubicGrad ResizeBilinear ResizeBilinearGrad
        ResizeNearestNeighbor ResizeNearestNeighborGrad SampleDistortedBoundingBox
        SampleDistortedBoundingBoxV2 ScaleAndTranslate ScaleAndTranslateGrad
        StatelessSampleDistortedBoundingBox
    """,
    "strings and parsing": """
        AsString DecodeBase64 DecodeCSV DecodeCompressed DecodeJSONExample DecodePaddedRaw
        DecodeRaw EncodeBase64 ParseExample ParseExampleV2 ParseSequenceExample
        ParseSequenceExampleV2 ParseSingleExample ParseSingleSequenceExample ParseTensor
        ReduceJoin RegexFullMatch RegexReplace SerializeTensor StaticRegexFullMatch
        StaticRegexReplace StringFormat StringJoin StringLength StringLower StringNGrams
        StringSplit StringSplitV2 StringStrip StringToHashBucket StringToHashBucketFast
        StringToHashBucketStrong StringToNumber StringUpper Substr UnicodeDecode
        UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode
    """,
    "random numbers": """
        Multinomial NonDeterministicInts ParameterizedTruncatedNormal RandomCrop
        RandomGamma RandomGammaGrad RandomIndexShuffle RandomPoisson RandomPoissonV2
        RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt RngReadAndSkip
        RngSkip StatefulRandomBinomial StatefulStandardNormal StatefulStandardNormalV2
        StatefulTruncatedNormal StatefulUniform StatefulUniformFullInt StatefulUniformInt
        StatelessMultinomial StatelessParameterizedTruncatedNormal StatelessRandomBinomial
        StatelessRandomGammaV2 StatelessRandomGammaV3 StatelessRandomGetAlg
        StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg StatelessRandomNormal
        StatelessRandomNormalV2 StatelessRandomPoisson StatelessRandomUniform
        StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
        StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformV2
        StatelessShuffle StatelessTruncatedNormal StatelessTruncatedNormalV2
        TruncatedNormal
    """,
    "variables": """
        Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp
        AssignVariableOp CountUpTo DestroyResourceOp DestroyTemporaryVariable
        DisableCopyOnRead IsVariableInitialized ReadVariableOp ResourceCountUpTo
        ResourceGather ResourceGatherNd ResourceScatterAdd ResourceScatterDiv
        ResourceScatterMax ResourceScatterMin ResourceScatterMul ResourceScatterNdAdd
        ResourceScatterNdMax ResourceScatterNdMin ResourceScatterNdSub
        ResourceScatterNdUpdate ResourceScatterSub ResourceScatterUpdate
        ResourceStridedSliceAssign ScatterAdd ScatterDiv ScatterMax ScatterMin ScatterMul
        ScatterNdAdd ScatterNdMax ScatterNdMin ScatterNdSub ScatterNdUpdate ScatterSub
        ScatterUpdate StridedSliceAssign TemporaryVariable VarHandleOp VarIsInitializedOp
        Variable VariableShape VariableV2
    """,
    "tables, lists, arrays and options of tensors": """
        AnonymousHashTable AnonymousMutableDenseHashTable AnonymousMutableHashTable
        AnonymousMutableHashTableOfTensors EmptyTensorList EmptyTensorMap HashTable
        HashTableV2 InitializeTable InitializeTableV2 LookupTableExport
        LookupTableExportV2 LookupTableFind LookupTableFindV2 LookupTableImport
        LookupTableImportV2 LookupTableInsert LookupTableInsertV2 LookupTableRemoveV2
        LookupTableSize LookupTableSizeV2 MutableDenseHashTable MutableDenseHashTableV2
        MutableHashTable MutableHashTableOfTensors MutableHashTableOfTensorsV2
        MutableHashTableV2 OptionalFromValue OptionalGetValue OptionalHasValue
        OptionalNone TensorArray TensorArrayClose TensorArrayCloseV2 TensorArrayCloseV3
        TensorArrayConcat TensorArrayConcatV2 TensorArrayConcatV3 TensorArrayGather
        TensorArrayGatherV2 TensorArrayGatherV3 TensorArrayGrad TensorArrayGradV2
        TensorArrayGradV3 TensorArrayGradWithShape TensorArrayPack TensorArrayRead
        TensorArrayReadV2 TensorArrayReadV3 TensorArrayScatter TensorArrayScatterV2
        TensorArrayScatterV3 TensorArraySize TensorArraySizeV2 TensorArraySizeV3
        TensorArraySplit TensorArraySplitV2 TensorArraySplitV3 TensorArrayUnpack
        TensorArrayV2 TensorArrayV3 TensorArrayWrite TensorArrayWriteV2 TensorArrayWriteV3
        TensorListConcat TensorListConcatLists TensorListConcatV2 TensorListElementShape
        TensorListFromTensor TensorListGather TensorListGetItem TensorListLength
        TensorListPopBack TensorListPushBack TensorListPushBackBatch TensorListReserve
        TensorListResize TensorListScatter TensorListScatterIntoExistingList
        TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
        TensorMapErase TensorMapHasKey TensorMapInsert TensorMapLookup TensorMapSize
        TensorMapStackKeys
    """,
}

ALLOWED = frozenset(name for names in _FAMILIES.values() for name in names.split())

_NEVER = frozenset({"Abort"})
"""Ops that end the process, with exit code 0 if the file says so."""

_NAMED = 8
"""Ops that a message names; it counts the others."""


def refuse_unlisted(graph_def: Any, where: str, *, trust: bool = False) -> None:
    """Raise if a graph, or any function in it, has an op that is not allowed.

    Args:
        graph_def: a `GraphDef` of only what will run; see `flat_graph.pruned`.
        where: for messages.
        trust: allow all ops except `Abort`, which ends the process.

    Raises:
        UnsupportedError: names the ops.
    """
    from tensorflow.python.framework import op_def_registry

    named = (function.signature.name for function in graph_def.library.function)
    # Which of the two TensorFlow takes is not certain if a function has the name of an op.
    functions = {name for name in named if op_def_registry.get(name) is None}
    ops = called_by(all_nodes(graph_def)) - functions
    if ending := ops & _NEVER:
        raise UnsupportedError(where, f"running it would execute {min(ending)}, which ends bnstat")
    refused = [] if trust else sorted(ops - ALLOWED)
    if refused:
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise UnsupportedError(
            where,
            f"running it would execute {', '.join(refused[:_NAMED])}{more}, which may do more than "
            "compute with values in memory",
            "--trust runs it all the same; use it only for models from people whom you trust",
        )


def refuse_evaluated(graph_def: Any, tensor: str, where: str, *, trust: bool = False) -> None:
    """Raise if the import of a graph would run an op that is not allowed.

    Shape inference runs stateless ops that depend on stateless ops alone.

    Args:
        graph_def: a `GraphDef` that is imported, but does not run.
        tensor: the tensor for which it is imported; the graph holds what it depends on.
        where: for messages.
        trust: as for `refuse_unlisted`.

    Raises:
        UnsupportedError: names the ops.
    """
    from tensorflow.python.framework import op_def_registry

    users: dict[str, list[str]] = {}
    waiting = [op_of(tensor)]
    for node in graph_def.node:
        definition = op_def_registry.get(node.op)
        if definition is not None and definition.is_stateful:
            waiting.append(node.name)
        for source in node.input:
            users.setdefault(op_of(source), []).append(node.name)
    skipped: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in skipped:
            skipped.add(name)
            waiting.extend(users.get(name, ()))
    evaluated = type(graph_def)(library=graph_def.library)
    evaluated.node.extend(node for node in graph_def.node if node.name not in skipped)
    names = [node.name for node in evaluated.node]
    refuse_unlisted(pruned(evaluated, names, where), where, trust=trust)
