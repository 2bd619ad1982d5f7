"""The released files: what there is, where from, where to, and how one knows them.

In: nothing. Out: `ITEMS`, by the names that download.py takes; `PAPER`, those of the paper.
"""

from typing import NamedTuple

DRS = "https://github.com/qjadud1994/DRS/releases/download/asset"
COCO = "http://images.cocodataset.org"
REMBG = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"


class Asset(NamedTuple):
    """One released file. `to`: its folder in the data root; None: the checkpoint folder.

    With `holds`, it is an archive: the folder in it that has such an entry becomes `to`. It is
    there already, by whatever means, where as many files as `counts` has match below `to`.
    """

    url: str
    to: str | None = None
    holds: str = ""
    counts: dict[str, int] = {}
    md5: str | None = None  # None: what comes first is recorded, and compared with later
    data_root: str = "VOC2012"  # unless the user names another


PAPER = {
    "voc2012": ("PASCAL VOC 2012: images, annotations, splits", [Asset(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar", "",
        "JPEGImages", {"JPEGImages/*.jpg": 17_125, "Annotations/*.xml": 17_125,
                       "ImageSets/Segmentation/train.txt": 1, "ImageSets/Segmentation/val.txt": 1},
        "6cd6e144f989b92b3379bac3b3de84fd")]),
    "masks": ("VOC + SBD masks, to measure mIoU and train DeepLab on", [Asset(
        f"{DRS}/SegmentationClassAug.zip", "SegmentationClassAug", "*.png", {"*.png": 12_031})]),
    "saliency": ("saliency maps, the background cue", [Asset(
        f"{DRS}/saliency_map.zip", "saliency_map", "*.png")]),
    "lists": ("image lists with class labels", [
        Asset(f"https://raw.githubusercontent.com/qjadud1994/DRS/main/VOC2012_list/{name}_cls.txt",
              "ImageSets/Segmentation") for name in ("train_aug", "train", "val")]),
    "drs": ("classifier with learnable DRS", [Asset(f"{DRS}/DRS_learnable.pth")]),
    "refine": ("refinement network", [Asset(f"{DRS}/Refine_DRS_learnable.pth")]),
    "pseudo-labels": ("the pseudo labels of the paper", [Asset(
        f"{DRS}/refined_pseudo_segmentation_labels.zip", "refined_pseudo_segmentation_labels",
        "*.png")]),
    "deeplab-init": ("COCO weights from which DeepLab training starts", [
        Asset(f"{DRS}/deeplabv1_resnet101-coco.pth")]),
    "deeplab": ("DeepLab-V2 trained on the pseudo labels", [
        Asset(f"{DRS}/Deeplabv2_pseudo_segmentation_labels.pth")]),
}
ITEMS = PAPER | {
    "coco2014": ("COCO 2014: images, annotations", [
        Asset(f"{COCO}/zips/train2014.zip", "train2014", "*.jpg", {"*.jpg": 82_783},
              "0da8c0bd3d6becc4dcb32757491aca88", "COCO2014"),
        Asset(f"{COCO}/zips/val2014.zip", "val2014", "*.jpg", {"*.jpg": 40_504},
              "a3d79f5ed8d289b7a7554ce06a5782b3", "COCO2014"),
        Asset(f"{COCO}/annotations/annotations_trainval2014.zip", "annotations", "*.json",
              {"*.json": 6}, "0a379cfc70b0e71301e0f377548639bd", "COCO2014")]),
    "u2net": ("U2-Net, which makes saliency maps (ONNX, from rembg)", [
        Asset(f"{REMBG}/u2net.onnx", md5="60024c5c889badc19c04ad937298a77b")]),
    "isnet": ("IS-Net, which makes saliency maps (ONNX, from rembg)", [
        Asset(f"{REMBG}/isnet-general-use.onnx", md5="fc16ebd8b0c10d971d3513d564d01e29")]),
}
