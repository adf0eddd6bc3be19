"""The table of backbones: one row of data for every Keras Applications model.

A backbone is a pre-trained network without its classifier, together with its preprocessing. To add one, add a row;
a test compares each row with Keras.

>>> find_backbone("mobilenetv2").depth
1280
"""

from dataclasses import dataclass

from pipeline.errors import UsageError
from pipeline.wording import closest

KERNELS = "_weights_tf_dim_ordering_tf_kernels"
NOTOP = f"{KERNELS}_notop.h5"

# The sizes that Keras publishes separate weights for; other sizes use those of 224.
MOBILENET_SIZES = (128, 160, 192, 224)
MOBILENETV2_SIZES = (96, 128, 160, 192, 224)


@dataclass(frozen=True)
class Backbone:
    """One Keras Applications model.

    Parameters
    ----------
    name : str
        Keras' name in lower case, alpha as a suffix: ``"mobilenetv2_1.4"``.
    constructor : str
        The function of ``keras.applications``.
    size : int
        Default side of the square input, in pixels.
    min_size : int
        Smallest side that Keras accepts.
    preprocessing : str
        ``"caffe"``, ``"tf"``, ``"torch"`` (the modes of Keras' ``preprocess_input``) or ``"in-model"``:
        the network expects RGB values from 0 to 255.
    depth : int
        Length of the pooled vector of the last feature map.
    weights_file : str
        File name of the published ImageNet weights without classifier; may contain ``{size}``.
    weights_hash : str or None
        MD5 or SHA-256 of that file as published by Keras, or None.
    alpha : float or None
        Width multiplier of the families that have one.

    Examples
    --------
    >>> find_backbone("mobilenet_0.25").weights_name(160)
    'mobilenet_2_5_160_tf_no_top.h5'
    """

    name: str
    constructor: str
    size: int
    min_size: int
    preprocessing: str
    depth: int
    weights_file: str
    weights_hash: str | None = None
    alpha: float | None = None

    def weights_name(self, size: int) -> str:
        """Return the file name of the ImageNet weights that Keras uses for inputs of `size` pixels."""
        sizes = {"MobileNet": MOBILENET_SIZES, "MobileNetV2": MOBILENETV2_SIZES}.get(self.constructor, ())
        return self.weights_file.format(size=size if size in sizes else 224)


# fmt: off
_ROWS = (
    Backbone("vgg16", "VGG16", 224, 32, "caffe", 512, f"vgg16{NOTOP}", "6d6bbae143d832006294945121d1f1fc"),
    Backbone("vgg19", "VGG19", 224, 32, "caffe", 512, f"vgg19{NOTOP}", "253f8cb515780f3b799900260a226db6"),
    Backbone("xception", "Xception", 299, 71, "tf", 2048, f"xception{NOTOP}", "b0042744bf5b25fce3cb969f33bebb97"),
    Backbone("resnet101", "ResNet101", 224, 32, "caffe", 2048, f"resnet101{NOTOP}", "88cf7a10940856eca736dc7b7e228a21"),
    Backbone("resnet152", "ResNet152", 224, 32, "caffe", 2048, f"resnet152{NOTOP}", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    Backbone("resnet50", "ResNet50", 224, 32, "caffe", 2048, f"resnet50{NOTOP}", "4d473c1dd8becc155b73f8504c6f6626"),
    Backbone("resnet101v2", "ResNet101V2", 224, 32, "tf", 2048, f"resnet101v2{NOTOP}", "c0ed64b8031c3730f411d2eb4eea35b5"),
    Backbone("resnet152v2", "ResNet152V2", 224, 32, "tf", 2048, f"resnet152v2{NOTOP}", "ed17cf2e0169df9d443503ef94b23b33"),
    Backbone("resnet50v2", "ResNet50V2", 224, 32, "tf", 2048, f"resnet50v2{NOTOP}", "fac2f116257151a9d068a22e544a4917"),
    Backbone("inceptionresnetv2", "InceptionResNetV2", 299, 75, "tf", 1536, f"inception_resnet_v2{NOTOP}", "d19885ff4a710c122648d3b5c3b684e4"),
    Backbone("inceptionv3", "InceptionV3", 299, 75, "tf", 2048, f"inception_v3{NOTOP}", "bcbd6486424b2319ff4ef7d526e38f63"),
    Backbone("mobilenet_0.25", "MobileNet", 224, 32, "tf", 256, "mobilenet_2_5_{size}_tf_no_top.h5", alpha=0.25),
    Backbone("mobilenet_0.5", "MobileNet", 224, 32, "tf", 512, "mobilenet_5_0_{size}_tf_no_top.h5", alpha=0.5),
    Backbone("mobilenet_0.75", "MobileNet", 224, 32, "tf", 768, "mobilenet_7_5_{size}_tf_no_top.h5", alpha=0.75),
    Backbone("mobilenet", "MobileNet", 224, 32, "tf", 1024, "mobilenet_1_0_{size}_tf_no_top.h5", alpha=1.0),
    Backbone("mobilenetv2_0.35", "MobileNetV2", 224, 32, "tf", 1280, f"mobilenet_v2{KERNELS}_0.35_{{size}}_no_top.h5", alpha=0.35),
    Backbone("mobilenetv2_0.5", "MobileNetV2", 224, 32, "tf", 1280, f"mobilenet_v2{KERNELS}_0.5_{{size}}_no_top.h5", alpha=0.5),
    Backbone("mobilenetv2_0.75", "MobileNetV2", 224, 32, "tf", 1280, f"mobilenet_v2{KERNELS}_0.75_{{size}}_no_top.h5", alpha=0.75),
    Backbone("mobilenetv2", "MobileNetV2", 224, 32, "tf", 1280, f"mobilenet_v2{KERNELS}_1.0_{{size}}_no_top.h5", alpha=1.0),
    Backbone("mobilenetv2_1.3", "MobileNetV2", 224, 32, "tf", 1664, f"mobilenet_v2{KERNELS}_1.3_{{size}}_no_top.h5", alpha=1.3),
    Backbone("mobilenetv2_1.4", "MobileNetV2", 224, 32, "tf", 1792, f"mobilenet_v2{KERNELS}_1.4_{{size}}_no_top.h5", alpha=1.4),
    Backbone("mobilenetv3large_0.75", "MobileNetV3Large", 224, 32, "in-model", 720, "weights_mobilenet_v3_large_224_0.75_float_no_top_v2.h5", "40af19a13ebea4e2ee0c676887f69a2e", alpha=0.75),
    Backbone("mobilenetv3large", "MobileNetV3Large", 224, 32, "in-model", 960, "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", "07fb09a5933dd0c8eaafa16978110389", alpha=1.0),
    Backbone("mobilenetv3small_0.75", "MobileNetV3Small", 224, 32, "in-model", 432, "weights_mobilenet_v3_small_224_0.75_float_no_top_v2.h5", "ebdb5cc8e0b497cd13a7c275d475c819", alpha=0.75),
    Backbone("mobilenetv3small", "MobileNetV3Small", 224, 32, "in-model", 576, "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", "d3e8ec802a04aa4fc771ee12a9a9b836", alpha=1.0),
    Backbone("densenet121", "DenseNet121", 224, 32, "torch", 1024, f"densenet121{NOTOP}", "30ee3e1110167f948a6b9946edeeb738"),
    Backbone("densenet169", "DenseNet169", 224, 32, "torch", 1664, f"densenet169{NOTOP}", "b8c4d4c20dd625c148057b9ff1c1176b"),
    Backbone("densenet201", "DenseNet201", 224, 32, "torch", 1920, f"densenet201{NOTOP}", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    Backbone("nasnetlarge", "NASNetLarge", 331, 32, "tf", 4032, "nasnet_large_no_top.h5", "d81d89dc07e6e56530c4e77faddd61b5"),
    Backbone("nasnetmobile", "NASNetMobile", 224, 32, "tf", 1056, "nasnet_mobile_no_top.h5", "1ed92395b5b598bdda52abe5c0dbfd63"),
    Backbone("efficientnetb0", "EfficientNetB0", 224, 32, "in-model", 1280, "efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d"),
    Backbone("efficientnetb1", "EfficientNetB1", 240, 32, "in-model", 1280, "efficientnetb1_notop.h5", "74c4e6b3e1f6a1eea24c589628592432"),
    Backbone("efficientnetb2", "EfficientNetB2", 260, 32, "in-model", 1408, "efficientnetb2_notop.h5", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    Backbone("efficientnetb3", "EfficientNetB3", 300, 32, "in-model", 1536, "efficientnetb3_notop.h5", "af6d107764bb5b1abb91932881670226"),
    Backbone("efficientnetb4", "EfficientNetB4", 380, 32, "in-model", 1792, "efficientnetb4_notop.h5", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    Backbone("efficientnetb5", "EfficientNetB5", 456, 32, "in-model", 2048, "efficientnetb5_notop.h5", "38879255a25d3c92d5e44e04ae6cec6f"),
    Backbone("efficientnetb6", "EfficientNetB6", 528, 32, "in-model", 2304, "efficientnetb6_notop.h5", "9ecce42647a20130c1f39a5d4cb75743"),
    Backbone("efficientnetb7", "EfficientNetB7", 600, 32, "in-model", 2560, "efficientnetb7_notop.h5", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    Backbone("efficientnetv2b0", "EfficientNetV2B0", 224, 32, "in-model", 1280, "efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff"),
    Backbone("efficientnetv2b1", "EfficientNetV2B1", 240, 32, "in-model", 1280, "efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37"),
    Backbone("efficientnetv2b2", "EfficientNetV2B2", 260, 32, "in-model", 1408, "efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb"),
    Backbone("efficientnetv2b3", "EfficientNetV2B3", 300, 32, "in-model", 1536, "efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856"),
    Backbone("efficientnetv2l", "EfficientNetV2L", 480, 32, "in-model", 1280, "efficientnetv2-l_notop.h5", "b0b66b5c863aef5b46e8608fe1711615"),
    Backbone("efficientnetv2m", "EfficientNetV2M", 480, 32, "in-model", 1280, "efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342"),
    Backbone("efficientnetv2s", "EfficientNetV2S", 384, 32, "in-model", 1280, "efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070"),
    Backbone("convnexttiny", "ConvNeXtTiny", 224, 32, "in-model", 768, "convnext_tiny_notop.h5", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1"),
    Backbone("convnextsmall", "ConvNeXtSmall", 224, 32, "in-model", 768, "convnext_small_notop.h5", "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab"),
    Backbone("convnextbase", "ConvNeXtBase", 224, 32, "in-model", 1024, "convnext_base_notop.h5", "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45"),
    Backbone("convnextlarge", "ConvNeXtLarge", 224, 32, "in-model", 1536, "convnext_large_notop.h5", "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd"),
    Backbone("convnextxlarge", "ConvNeXtXLarge", 224, 32, "in-model", 2048, "convnext_xlarge_notop.h5", "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05"),
)
# fmt: on

BACKBONES: dict[str, Backbone] = {row.name: row for row in _ROWS}


def find_backbone(name: str) -> Backbone:
    """Return the row of a backbone.

    Raises
    ------
    UsageError
        If no backbone has this name; the message lists the closest.

    Examples
    --------
    >>> find_backbone("xception").size
    299
    """
    try:
        return BACKBONES[name.lower().removesuffix("_1.0")]
    except KeyError:
        raise UsageError(
            f"no backbone is called {name!r}; {closest(name.lower(), BACKBONES)}"
            " (or the path of a .keras file or of a bundle)"
        ) from None
