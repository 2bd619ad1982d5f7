"""What says which classes are in one's own photos: each format, what is found, what is refused."""

import csv
import json
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from PIL import Image
from test_bad_files import message, soon

from datasets.layout import DataRoot
from datasets.lists import Entry, read_list, split
from datasets.pictures import MAX_ID_BYTES, Pictures, find_pictures, make_id
from utils.files import UserError

CAT_DOG = ("cat", "dog")


def photo(path: Path, seed: int = 0) -> Path:
    """A photo; another for each seed, with the same bytes for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def photos(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        photo(root / name, seed)
    return root


def labels(root: Path | DataRoot, name: str = "train_aug") -> dict[str, set[str]]:
    """Image id -> class names, by a list."""
    root = DataRoot(root) if isinstance(root, Path) else root
    return {entry.id: {root.classes[index] for index in entry.labels}
            for entry in root.entries(name)}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content),
                    encoding="utf-8")
    return path


def left_out(root: Path) -> str:
    """What is left out, as told."""
    found = DataRoot(root).describe()
    return "\n".join(line for line in found.splitlines() if line.startswith("left out: "))


# Ids

@pytest.mark.parametrize(("path", "expected"), [
    ("a.jpg", "a"), ("cat/1.jpg", "cat__1"), ("cat/2019/beach day.JPEG", "cat__2019__beach day"),
    ("v1.2/x.y.png", "v1.2__x.y"), ("Straße/東京.webp", "Straße__東京"), ("a.b", "a.b"),
    ("-/x.jpg", "-__x"), ("...jpg", ".."),
])
def test_ids_are_paths_without_slashes(path, expected):
    assert make_id(path) == expected


def test_ids_are_safe_and_unique_whatever_the_names_are():
    names = ["a\nb.jpg", "a\tb.jpg", "a_b.jpg", "a\udcffb.jpg", "x" * 250 + ".jpg",
             "y/" + "x" * 250 + ".jpg", "é" * 120 + ".jpg", "東" * 80 + ".png", "a/" * 200 + "b"]
    ids = [make_id(name) for name in names]
    assert len(set(ids)) == len(names)
    for image_id in ids:
        assert len(image_id.encode()) <= MAX_ID_BYTES
        assert "/" not in image_id and image_id.isprintable() and not image_id.startswith(".")


def test_two_images_of_one_name_in_different_folders(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    root = DataRoot(tmp_path)
    assert labels(root) == {"cat__1": {"cat"}, "dog__1": {"dog"}, "dog__2": {"dog"}}
    assert root.image("dog__1") == tmp_path / "dog" / "1.jpg"
    find = root.pictures.find
    assert find("dog/1.jpg") == find("dog/1") == find("dog__1") == find("dog\\1.jpg") == "dog__1"
    assert find("/home/me/photos/dog/1.jpg") == find("./dog/1.jpg") == "dog__1"
    assert find("2.jpg") == find("2") == "dog__2"
    assert find("bird/1.jpg") is find("bird/2.jpg") is find("3.jpg") is None  # never another one
    assert "several images are called '1.jpg' (cat__1, dog__1)" in message(find, "1.jpg")


def test_images_that_would_share_an_id_are_refused(tmp_path):
    photos(tmp_path, "cat/1.jpg", "cat__1.jpg", "dog/1.jpg", "bird/1.jpg")
    assert "two images of one name" in message(DataRoot, tmp_path)
    assert len(DataRoot(tmp_path, tolerant=True).clashes) == 1
    assert "would become one file" in message(find_pictures, tmp_path)


def test_pictures_to_predict_are_found_as_those_of_a_data_root(tmp_path):
    photos(tmp_path, "a.jpg", "below/b.png", "below/deep/c.webp")
    (tmp_path / "below" / "circle").symlink_to(tmp_path)
    assert set(find_pictures(tmp_path).by_id) == {"a", "below__b", "below__deep__c"}
    assert find_pictures(tmp_path / "a.jpg").by_id == {"a": tmp_path / "a.jpg"}
    (tmp_path / "a.jpg").rename(tmp_path / "a.data")
    assert set(find_pictures(tmp_path / "a.data").by_id) == {"a.data"}
    assert "no such file" in message(find_pictures, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "no image there (.bmp" in message(find_pictures, tmp_path / "empty")


# One subfolder per class

def test_subfolders_are_classes(tmp_path):
    photos(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/2019/summer/2.png", "loose.jpg")
    root = DataRoot(tmp_path)
    assert root.classes == ["cat", "dog"] and not root.voc
    assert labels(root) == {"cat__1": {"cat"}, "cat__2019__summer__2": {"cat"}, "dog__1": {"dog"}}
    assert set(root.images) == {*labels(root), "loose"}
    assert "1 image in no subfolder" in left_out(tmp_path)


def test_the_same_picture_in_two_subfolders_has_both_classes(tmp_path):
    photo(tmp_path / "cat" / "sofa.jpg", 1)
    photo(tmp_path / "dog" / "IMG_7.jpg", 1)  # another name, the same bytes
    photo(tmp_path / "dog" / "sofa.jpg", 2)  # another picture
    assert labels(tmp_path) == {"cat__sofa": {"cat", "dog"}, "dog__sofa": {"dog"}}
    assert "1 copy of another image" in left_out(tmp_path)


def test_empty_subfolders_and_other_folders_are_no_classes(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "saliency_map/cat__1.png", ".thumbs/x.jpg",
           "SegmentationClassAug/cat__1.png")
    (tmp_path / "bird").mkdir()
    write(tmp_path / "notes" / "readme.txt", "nothing")
    assert DataRoot(tmp_path).classes == ["cat", "dog"]
    assert "subfolders without images: bird, notes" in left_out(tmp_path)
    assert "masks: 1, saliency maps: 1" in DataRoot(tmp_path).describe()


def test_classes_txt_chooses_and_orders_subfolders(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "bird/1.jpg", "-/street.jpg")
    write(tmp_path / "classes.txt", "dog\ncat\n")
    root = DataRoot(tmp_path)
    assert root.classes == ["dog", "cat"]
    assert labels(root) == {"cat__1": {"cat"}, "dog__1": {"dog"}, "-__street": set()}
    assert "subfolders that classes.txt does not name: bird" in left_out(tmp_path)


def test_folders_called_train_and_val_are_lists(tmp_path):
    photos(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "valid/cat/1.jpg", "test/dog/1.jpg")
    root = DataRoot(tmp_path)
    assert root.classes == ["cat", "dog"]
    assert set(labels(root)) == {"train__cat__1", "train__dog__1"}
    assert labels(root, "val") == {"valid__cat__1": {"cat"}}
    assert f"neither for training nor for validation: {tmp_path / 'test'}" in left_out(tmp_path)


def test_one_subfolder_alone_tells_nothing(tmp_path):
    photos(tmp_path, "images/1.jpg", "images/2.jpg")
    text = message(DataRoot, tmp_path)
    assert "images: one subfolder alone" in text and "docs/own_data.md" in text
    assert "subfolder called -" in text  # what to do
    assert "VOC2012" not in text and "download" not in text


def test_300_subfolders_are_too_many(tmp_path):
    photos(tmp_path, *(f"class {i}/1.jpg" for i in range(300)))
    assert "300 subfolders: 300 classes (class 0, class 1, class 10 and 297 more); there may be " \
           "1 to 254" in message(DataRoot, tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg")

    def walk(folder, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", str(tmp_path / "dog")))
        yield from ()

    monkeypatch.setattr("os.walk", walk)
    assert f"{tmp_path / 'dog'}: cannot be read (Permission denied)" in message(DataRoot, tmp_path)


# Tables

TABLES = {
    "commas": "image,label\na.jpg,cat\nb.jpg,cat;dog\nc.jpg,-\n",
    "quotes": 'filename,classes\n"a.jpg","cat"\n"b.jpg","cat, dog"\nc.jpg,"-"\n',
    "semicolons": 'Image;Labels\na.jpg;cat\nb.jpg;cat,dog\n"c.jpg";-\n',
    "tabs": "file\tlabel\na\tcat\nb\tcat,dog\nc\t-\n",
    "a row per class": "image,label\na.jpg,cat\nb.jpg,cat\nb.jpg,dog\nc.jpg,-\n",
    "other columns": "id,taken,image,label\n1,2019,a.jpg,cat\n2,,b.jpg,cat;dog\n3,x,c.jpg,-\n",
    "blanks": "\ufeffimage, label \r\n a.jpg , cat \r\n\r\nb.jpg,cat ; dog;\r\nc.jpg,-\r\n,\r\n",
    "another name for the label": "image,animal\na.jpg,cat\nb.jpg,cat;dog\nc.jpg,-\n",
    "paths": "image,label\nphotos/a.jpg,cat\n/home/me/b.jpg,cat;dog\nC:\\pics\\c.jpg,-\n",
    "Label Studio": (
        'image,id,choice,annotator,annotation_id,created_at,updated_at,lead_time\n'
        '/data/upload/1/0a1b2c3d-a.jpg,1,cat,1,1,2024-05-01T10:00:00Z,2024-05-01T10:00:00Z,2.1\n'
        '/data/local-files/?d=photos/b.jpg,2,"{""choices"": [""cat"", ""dog""]}",1,2,,,3\n'
        'http://host:8080/data/upload/1/0a1b2c3d-c.jpg?token=x,3,-,1,3,,,4\n'),
    "Label Studio, sorted columns": (
        '"annotation_id","annotator","choice","created_at","id","image","lead_time","updated_at",'
        '"was_cancelled"\n1,"me@x.y","cat","",1,"/data/upload/1/0a1b2c3d-a.jpg",2.1,"","False"\n'
        '2,"me@x.y","[{""rectanglelabels"": [""cat""]}, {""rectanglelabels"": [""dog""]}]","",2,'
        '"s3://bucket/b.jpg",3,"","False"\n3,"me@x.y","-","",3,"/data/upload/1/c.jpg",2,"",""\n'),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    table = write(tmp_path / f"labels.{'tsv' if name == 'tabs' else 'csv'}", TABLES[name])
    root = DataRoot(tmp_path)
    assert root.classes == ["cat", "dog"]
    assert labels(root) == {"a": {"cat"}, "b": {"cat", "dog"}, "c": set()}
    assert f"labels: table {table.name}" in root.describe()


def test_an_empty_cell_says_nothing_about_an_image(tmp_path):
    """Unlike "-", which says that it shows none of the classes."""
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "labels.csv", "image,label\na.jpg,cat\nb.jpg,\nc.jpg,-\n")
    assert labels(tmp_path) == {"a": {"cat"}, "c": set()}
    assert "1 row without a class" in DataRoot(tmp_path).describe()


def test_class_names_of_any_kind_in_a_table(tmp_path):
    photos(tmp_path, "x/a.jpg", "y/a.jpg", "b.jpg")
    names = ["AC/DC", "traffic light", "..", unicodedata.normalize("NFD", "Zürich"), "a\\b", "7"]
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), ("x/a.jpg", ";".join(names)),
                                    ("y/a.jpg", "AC/DC")])
    root = DataRoot(tmp_path)
    composed = {unicodedata.normalize("NFC", name) for name in names}
    assert labels(root) == {"x__a": composed, "y__a": {"AC/DC"}}
    write(tmp_path / "classes.txt", "cat, big\ndog\n")
    write(tmp_path / "labels.csv", 'image,label\nx/a.jpg,"cat, big"\ny/a.jpg,dog\n')
    assert labels(tmp_path) == {"x__a": {"cat, big"}, "y__a": {"dog"}}


def test_tables_called_train_and_val_are_lists(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "train.csv", "image,label\na.jpg,cat\nb.jpg,dog\n")
    write(tmp_path / "val.csv", "image,label\nc.jpg,cat\n")
    assert set(labels(tmp_path)) == {"a", "b"} and set(labels(tmp_path, "val")) == {"c"}


BAD_TABLES = {
    "no image column": ("picture_no,label\n1,cat\n", "labels.csv: no column for the image"),
    "no label column": ("image,size,date\na.jpg,1,2\n", "labels.csv: no column for the classes"),
    "one column": ("image\na.jpg\n", "no column for the classes"),
    "empty": ("", "labels.csv: is empty"),
    "header alone": ("image,label\n", "names no class"),
    "no labels": ("image,label\na.jpg,\n", "names no class"),
    "unknown image": ("image,label\na.jpg,cat\nz.jpg,cat\n", "labels.csv, line 3: names no image"),
    "no image": ("image,label\na.jpg,cat\n ,cat\n", "labels.csv, line 3: names no image"),
    "another length": ("image,label\na.jpg,cat,dog\n", "line 2: 3 cells, but 2 columns"),
    "bad quotes": ('image,label\na.jpg,"ca"t\n', "labels.csv, line 2: "),
    "endless quotes": ('image,label\na.jpg,"cat\n' + "b.jpg,dog\n" * 9, "labels.csv, line "),
    "huge cell": ("image,label\na.jpg," + "c" * 200_000 + "\n", "labels.csv, line 2: "),
    "long class": ("image,label\na.jpg," + "c" * 200 + "\n", "line 2: 'ccc"),
    "control": ("image,label\na.jpg,ca\x07t\n", r"line 2: 'ca\x07t' is no class name"),
    "zero": ("image,label\na.jpg,c\0t\n", "labels.csv, line 2: "),
    "JSON of nothing": ('image,label\na.jpg,"{""choices"": 7}"\n', "line 2: '7' is no class name"),
    "broken JSON": ('image,label\na.jpg,"{""choices"": "\n', "line 2: '{"),
    "deep JSON": ("image,label\na.jpg," + "[" * 100_000 + "\n", "labels.csv, line 2: "),
    "nested JSON": ('image,label\na.jpg,"[[""cat""]]"\n', "line 2: \"['cat']\" is no class name"),
    "300 classes": ("image,label\n" + "".join(f"a.jpg,c{i}\n" for i in range(300)),
                    "labels.csv: 300 classes"),
    "several of one name": ("image,label\na.jpg,cat\n1.jpg,dog\n", "several images are called"),
    "unsupported": ("image,label\nIMG_1.MOV,cat\n", "line 2: IMG_1.MOV: format not supported"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_wrong_table_is_named_with_line_and_reason(tmp_path, name):
    photos(tmp_path, "a.jpg", "b.jpg", "x/1.jpg", "x/y/1.jpg")
    (tmp_path / "IMG_1.MOV").write_bytes(b"x")
    text, words = BAD_TABLES[name]
    write(tmp_path / "labels.csv", text)
    assert words in message(lambda: DataRoot(tmp_path).entries("train_aug"))


def test_a_table_that_is_no_text(tmp_path):
    photos(tmp_path, "a.jpg")
    (tmp_path / "labels.csv").write_bytes("image,label\na.jpg,chien d'été\n".encode("utf-16"))
    assert "labels.csv: no UTF-8 text" in message(DataRoot, tmp_path)


def test_an_unknown_class_is_named_where_classes_txt_says_which_there_are(tmp_path):
    photos(tmp_path, "a.jpg")
    write(tmp_path / "labels.csv", "image,label\na.jpg,cat;wolf\n")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert "labels.csv, line 2: 'wolf' is none of the classes of classes.txt (cat, dog)" in \
        message(DataRoot(tmp_path).entries, "train_aug")


# JSON: Label Studio, LabelMe, COCO

@pytest.mark.parametrize("tasks", [
    [{"id": 1, "image": "/data/upload/1/0a1b2c3d-a.jpg", "choice": "cat", "annotator": 1,
      "annotation_id": 1, "created_at": "x", "updated_at": "x", "lead_time": 1.5},
     {"id": 2, "image": "/data/upload/1/0a1b2c3d-b%20c.jpg",
      "choice": {"choices": ["cat", "dog"]}, "annotator": 1}],
    [{"id": 1, "image": "a.jpg", "animal": ["cat"]}, {"image": "d.jpg"},
     {"image": "b c.jpg", "animal": ["dog", "cat"]}],
    [{"id": 1, "data": {"image": "/data/upload/a.jpg"}, "annotations": [
        {"result": [{"value": {"choices": ["dog"]}}], "was_cancelled": True},
        {"result": [{"type": "choices", "value": {"choices": ["cat"]}}]},
        {"result": [{"value": {"choices": ["dog"]}}], "was_cancelled": True}]},
     {"id": 2, "data": {"image": "/data/upload/b c.jpg"}, "annotations": [{"result": [
         {"value": {"rectanglelabels": ["cat"], "x": 1}}, {"value": {"rectanglelabels": ["dog"]}}
     ]}]}, {"id": 3, "data": {"image": "d.jpg"}, "annotations": []}],
])
def test_label_studio_json(tmp_path, tasks):
    photos(tmp_path, "a.jpg", "b c.jpg", "d.jpg")
    write(tmp_path / "project-1.json", tasks)
    assert labels(tmp_path) == {"a": {"cat"}, "b c": {"cat", "dog"}}


def labelme(image: object, *shapes: object, **more: object) -> dict:
    return {"version": "5.4.1", "flags": {}, "shapes": [
        {"label": shape, "points": [[0, 0], [3, 3]], "shape_type": "rectangle"}
        for shape in shapes], "imagePath": image, "imageData": "QUJD" * 1000, "imageHeight": 8,
        "imageWidth": 12, **more}


def test_labelme_files(tmp_path):
    photos(tmp_path, "a.jpg", "below/b.jpg", "images/c.jpg", "d.jpg", "below/e.jpg", "new.jpg")
    write(tmp_path / "a.json", labelme("a.jpg", "cat", "cat", "dog"))
    write(tmp_path / "below" / "b.json",
          labelme("b.jpg", "dog", flags={"cat": True, "bird": False}))
    write(tmp_path / "labels" / "c.json", labelme("..\\images\\c.jpg", "cat"))
    write(tmp_path / "d.json", labelme("d.jpg"))  # not yet labelled
    write(tmp_path / "new.json", labelme("old name.jpg", "dog"))
    assert labels(tmp_path) == {"a": {"cat", "dog"}, "below__b": {"dog", "cat"},
                                "images__c": {"cat"}, "new": {"dog"}}


def coco(names: list[str], pairs: list[tuple[int, int]], categories=((3, "dog"), (1, "cat"))
         ) -> dict:
    return {"info": {"year": 2024}, "licenses": [],
            "images": [{"id": 10 + i, "file_name": name, "height": 8, "width": 12}
                       for i, name in enumerate(names)],
            "annotations": [{"id": i, "image_id": image, "category_id": category}
                            for i, (image, category) in enumerate(pairs)],
            "categories": [{"id": number, "name": name} for number, name in categories]}


def test_coco_json_with_image_level_categories(tmp_path):
    photos(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "d.jpg")
    write(tmp_path / "result.json", coco(["images/a.jpg", "b.jpg", "c.jpg", "gone.jpg"],
                                         [(10, 1), (11, 3), (11, 1), (11, 1), (13, 1)]))
    root = DataRoot(tmp_path)
    assert root.classes == ["cat", "dog"]  # by id
    assert labels(root) == {"images__a": {"cat"}, "images__b": {"cat", "dog"}}
    shown = left_out(tmp_path)
    assert "1 images of" in shown and "result.json are not there" in shown and "gone.jpg" in shown
    assert "1 image without annotation" in shown


def test_coco_json_beside_its_images(tmp_path):
    """Two folders with images of one name: each file speaks of its own."""
    photos(tmp_path, "train/a.jpg", "train/b.jpg", "valid/a.jpg", "valid/c.jpg")
    write(tmp_path / "train" / "_annotations.coco.json", coco(["a.jpg", "b.jpg", "c.jpg"],
                                                             [(10, 1), (11, 3), (12, 3)]))
    write(tmp_path / "valid" / "_annotations.coco.json", coco(["a.jpg", "c.jpg"], [(10, 3)]))
    root = DataRoot(tmp_path)
    assert labels(root) == {"train__a": {"cat"}, "train__b": {"dog"}}
    # What nobody annotated can be scored, but teaches nothing; train's c.jpg is not valid's.
    assert labels(root, "val") == {"valid__a": {"dog"}, "valid__c": set()}
    assert "train/_annotations.coco.json are not there" in left_out(tmp_path)


def broken(**changes: object) -> dict:
    return {**coco(["a.jpg", "b.jpg"], [(10, 1), (11, 3)]), **changes}


def image(**fields: object) -> list[dict]:
    return [{"id": 10, "file_name": "a.jpg"}, fields]


BAD_JSON = {
    "something else": ({"name": "package", "version": 1}, "neither COCO nor LabelMe nor Label"),
    "a list of numbers": ([1, 2], "neither COCO nor"), "an empty list": ([], "neither COCO nor"),
    "text": ('"cat"', "x.json: no JSON"), "nothing": ("", "x.json: no JSON"),
    "half": (json.dumps(broken())[:200], "x.json: no JSON"),
    "more behind": (json.dumps(broken()) + "[", "something more"),
    "NaN": ('{"images": [NaN]}', "NaN is no number"),
    "deep": ('{"images": ' + "[" * 200_000, "x.json: "), "deep list": ("[" * 200_000, "x.json: "),
    "deep objects": ('{"a":' * 200_000, "x.json: "), "no colon": ('{"a" 1}', "x.json: no JSON"),
    "key of no text": ("{7: 1}", "x.json: no JSON"), "UTF-16": ("\ufeff\0[", "x.json: no JSON"),
    "huge number": ('{"images": [], "annotations": [{"image_id": ' + "9" * 10_000 + "}]}",
                    "x.json: no JSON"),
    "large number": (broken(annotations=[{"image_id": 10 ** 4000, "category_id": 1}]),
                     "is no image's id"),
    "infinite id": ('{"images": [{"id": 1e999, "file_name": "a.jpg"}], "annotations": [{}]}',
                    "x.json, images[0]: needs an id"),
    "images that are none": (broken(images=[1, 2]), "x.json, images[0]: needs an id and"),
    "images that are a text": (broken(images="all"), "images: needs an id"),
    "an image without file": (broken(images=image(id=11)), "images[1]: needs an id and"),
    "a true id": (broken(images=image(id=True, file_name="b.jpg")), "images[1]: needs an id"),
    "a list as id": (broken(images=image(id=[1], file_name="b.jpg")), "images[1]: needs an id"),
    "a name of no text": (broken(images=image(id=11, file_name=7)), "images[1]: needs an id"),
    "duplicate image": (broken(images=image(id=10, file_name="b.jpg")),
                        "images[1]: another image has the id 10"),
    "duplicate category": (broken(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "x"}]),
                           "categories[1]: another category has the id 1"),
    "two categories of one name": (broken(categories=[{"id": 1, "name": "cat"},
                                                      {"id": 3, "name": "cat "}]),
                                   "two categories of one name"),
    "nothing annotated": (broken(annotations=[]), "train_aug: holds no images"),
    "no category": (broken(categories=[]), "category_id 1 is no category's id"),
    "unknown image": (broken(annotations=[{"image_id": 77, "category_id": 1}]),
                      "image_id 77 is no image's id"),
    "annotation of no type": (broken(annotations=[{"image_id": {}, "category_id": 1}]),
                              "annotations[0]: needs an image_id"),
    "category of no text": (broken(categories=[{"id": 1, "name": None}]), "categories[0]: needs"),
    "line break in a name": (broken(categories=[{"id": 1, "name": "c\na"}, {"id": 3, "name": "d"}]),
                             r"'c\na' is no class name"),
    "300 categories": (broken(categories=[{"id": i, "name": f"c{i}"} for i in range(300)]),
                       "300 classes"),
    "no image is there": (broken(images=[{"id": 10, "file_name": "../../etc/passwd.jpg"},
                                         {"id": 11, "file_name": "\0"}]), "none is there"),
    "LabelMe without image": (labelme(7, "cat"), "imagePath: names no image"),
    "LabelMe of another image": (labelme("z.jpg", "cat"), "imagePath: names no image"),
    "LabelMe's label a number": (labelme("a.jpg", 7), "'7' is no class name"),
    "LabelMe's shapes a text": (labelme("a.jpg", "cat", shapes="cat"), "'None' is no class name"),
    "Label Studio without image": ([{"id": 1, "choice": "cat"}], "no column for the image"),
    "a list of other things": ([{"x": 1, "y": 2}], "no column for the image"),
    "Label Studio of no text": ([{"image": 7, "choice": "cat"}], "entry 0: names no image ('7')"),
    "Label Studio of two kinds": ([{"image": "a.jpg", "choice": "cat"}, 7], "entry[1]: is no obj"),
    "Label Studio's numbers": ([{"image": "a.jpg", "choice": {"choices": [1]}}],
                               "entry 0: '1' is no class name"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_wrong_json_is_named_with_place_and_reason(tmp_path, name):
    photos(tmp_path, "a.jpg", "b.jpg")
    content, words = BAD_JSON[name]
    write(tmp_path / "x.json", content)
    text = message(lambda: DataRoot(tmp_path).entries("train_aug"))
    assert "x.json" in text and words in text


def test_random_damage_to_json_and_tables_never_ends_in_anything_but_one_line(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    rng = random.Random(0)
    originals = {"x.json": [json.dumps(value).encode() for value in (
        broken(), labelme("a.jpg", "cat"), [{"image": "a.jpg", "choice": {"choices": ["cat"]}}])],
        "x.csv": [text.encode() for text in TABLES.values()],
        "a.xml": [b"<annotation><object><name>cat</name></object></annotation>"]}
    refused = 0
    for _ in range(400):
        name = rng.choice(list(originals))
        data = bytearray(rng.choice(originals[name]))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data))
            data[place:place + rng.randint(0, 2)] = rng.choice([
                b"", b"[", b"}", b'"', b",", b"\0", b"\xff", b"1e9", b"null", b"\n"])
        (tmp_path / name).write_bytes(bytes(data))
        with soon():
            try:
                DataRoot(tmp_path).entries("train_aug")
            except UserError as error:
                refused += 1
                assert "\n" not in str(error)
        (tmp_path / name).unlink()
    assert refused > 100


def test_json_is_read_record_by_record(tmp_path):
    """The same whatever the sizes of what is read at once, in memory that does not grow."""
    from datasets import records as module

    value = {"a": [1, "é\"]", {"b": [2]}, -0.5, None], "ü": 12, "c": [], "d": {"e": "{"}, "f": True,
             "g": [10 ** length for length in range(20)]}  # some end where a piece read does
    path = write(tmp_path / "x.json", json.dumps(value, ensure_ascii=False, indent=2))
    expected = [(key, i, item) for key, part in value.items()
                for i, item in (enumerate(part) if isinstance(part, list) else [(-1, part)])]
    for chunk in (1, 2, 3, 7, 64, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CHUNK", chunk)
            found = list(module.records(path))
        assert [(key, i, item) for key, i, item, _, _ in found] == expected
        with open(path, "rb") as file:
            assert [module.read_at(file, start, end) for *_, start, end in found] == [
                item for _, _, item in expected]


# VOC's XML, lists, and what goes before what

def voc_xml(*names: str) -> str:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<annotation>{objects}</annotation>"


def test_xml_files_beside_the_images_and_in_a_folder(tmp_path):
    photos(tmp_path, "a.jpg", "below/b.jpg", "c.jpg", "d.jpg")
    write(tmp_path / "a.xml", voc_xml("helmet", "head"))
    write(tmp_path / "below" / "b.xml", voc_xml("head"))
    write(tmp_path / "Annotations" / "c.xml", voc_xml("helmet"))
    write(tmp_path / "Annotations" / "gone.xml", voc_xml("helmet"))
    write(tmp_path / "d.xml", voc_xml())
    root = DataRoot(tmp_path)
    assert root.classes == ["head", "helmet"]
    assert labels(root) == {"a": {"head", "helmet"}, "below__b": {"head"}, "c": {"helmet"}}
    assert "gone.xml: of no image" in left_out(tmp_path)


def test_the_voc_layout_with_classes_of_its_own(tmp_path):
    photos(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg")
    write(tmp_path / "Annotations" / "a.xml", voc_xml("helmet"))
    write(tmp_path / "Annotations" / "b.xml", voc_xml("head", "head"))
    root = DataRoot(tmp_path)
    assert not root.voc and root.classes == ["head", "helmet"]
    assert labels(root) == {"a": {"helmet"}, "b": {"head"}}
    write(tmp_path / "Annotations" / "a.xml", voc_xml("cat"))
    write(tmp_path / "Annotations" / "b.xml", voc_xml("dog"))
    root = DataRoot(tmp_path)  # someone's cats and dogs, whatever VOC's classes are called
    assert not root.voc and root.classes == ["cat", "dog"]
    assert labels(root) == {"a": {"cat"}, "b": {"dog"}}


def test_voc_without_its_lists_is_not_trained_on_with_val(tmp_path):
    photos(tmp_path, "JPEGImages/2007_000032.jpg")
    write(tmp_path / "Annotations" / "2007_000032.xml", voc_xml("cat"))
    root = DataRoot(tmp_path)
    assert root.voc and len(root.classes) == 20
    said = message(root.entries, "train_aug")
    assert "list 'train_aug': no such file" in said and "download.py lists" in said


def test_an_own_list_goes_before_everything(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    write(tmp_path / "classes.txt", "cat\ndog\n")
    write(tmp_path / "train_aug.txt", "cat/1.jpg cat dog\ndog__2 dog\n")
    write(tmp_path / "broken.csv", "image,label\n\"")
    assert labels(tmp_path) == {"cat__1": {"cat", "dog"}, "dog__2": {"dog"}}
    write(tmp_path / "train_aug.txt", "cat/1.jpg\ndog/2.jpg -\n")  # no labels: the source is asked
    (tmp_path / "broken.csv").unlink()
    assert labels(tmp_path) == {"cat__1": {"cat"}, "dog__2": set()}
    write(tmp_path / "val.txt", "dog/1.jpg\n")
    assert labels(tmp_path, "val") == {"dog__1": {"dog"}}


def test_sources_go_in_the_documented_order(tmp_path):
    photos(tmp_path, "x/a.jpg", "y/b.jpg")
    write(tmp_path / "x" / "a.xml", voc_xml("from xml"))
    assert DataRoot(tmp_path).classes == ["from xml"]
    write(tmp_path / "y" / "b.json", labelme("b.jpg", "from labelme"))
    assert DataRoot(tmp_path).classes == ["from labelme"]
    write(tmp_path / "tasks.json", [{"image": "a.jpg", "choice": "from label studio"}])
    assert DataRoot(tmp_path).classes == ["from label studio"]
    write(tmp_path / "coco.json", coco(["a.jpg"], [(10, 1)], [(1, "from coco")]))
    assert DataRoot(tmp_path).classes == ["from coco"]
    write(tmp_path / "labels.csv", "image,label\na.jpg,from table\n")
    assert DataRoot(tmp_path).classes == ["from table"]


def test_nothing_says_what_is_in_the_images(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "train_aug.txt", "a cat\nb dog\n")
    text = message(DataRoot, tmp_path)
    assert "nothing says which classes" in text and "write classes.txt" in text
    assert "download" not in text and "VOC2012" not in text
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert labels(tmp_path) == {"a": {"cat"}, "b": {"dog"}}


def test_the_advice_fits_what_is_in_the_folder(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg")
    text = message(DataRoot, tmp_path)
    assert "one subfolder for each class" in text and "classes.txt" not in text
    write(tmp_path / "photos.csv", "number,notes\n1,2\n")
    text = message(DataRoot, tmp_path)
    assert "photos.csv: no column for the image" in text and "subfolder" not in text
    (tmp_path / "photos.csv").rename(tmp_path / "photos.xlsx")
    assert "photos.xlsx: save it as CSV" in message(DataRoot, tmp_path)
    write(tmp_path / "classes.txt", "cat\ndog\n")
    text = message(lambda: DataRoot(tmp_path).entries("train_aug"))
    assert "nothing says which classes" in text and "train_aug.txt" in text
    write(tmp_path / "labels.txt", "a cat\n")
    text = message(lambda: DataRoot(tmp_path).entries("train_aug"))
    assert "there are labels" in text and "train_aug.txt" in text and "nothing says" not in text
    assert "is a file" in message(DataRoot, tmp_path / "a.jpg")


def test_json_of_other_things_does_not_hide_subfolders(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg")
    write(tmp_path / "camera.json", [{"lens": 1}])
    assert DataRoot(tmp_path).classes == ["cat", "dog"]
    assert "camera.json: no column for the image" in left_out(tmp_path)


def test_names_that_differ_by_case_alone_are_pointed_out(tmp_path):
    photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "labels.csv", "image,label\na.jpg,Cat\nb.jpg,cat\nc.jpg,dog\n")
    assert "two classes: 'Cat', 'cat'" in DataRoot(tmp_path).describe()


def test_the_lists_that_no_file_holds(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg")
    root = DataRoot(tmp_path)
    assert root.has_list("train_aug") and root.has_list("train") and not root.has_list("val")
    assert root.entries("train") == root.entries("train_aug")
    assert "list 'val': no such file" in message(root.entries, "val")
    photo(tmp_path / "SegmentationClassAug" / "dog__2.png")
    assert [entry.id for entry in DataRoot(tmp_path).entries("train")] == ["dog__2"]


def test_nothing_is_written_into_the_folder(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg")
    before = sorted(tmp_path.rglob("*"))
    root = DataRoot(tmp_path)
    root.entries("train_aug")
    root.describe()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_found_is_told_in_a_few_lines(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg", "loose.jpg")
    (tmp_path / "cat" / "clip.mov").write_bytes(b"x")
    assert DataRoot(tmp_path).describe().splitlines() == [
        f"{tmp_path}: 4 images, 2 classes (cat, dog)", "labels: 2 subfolders",
        "lists: train_aug 3, train 3", "masks: none, saliency maps: none",
        "left out: 1 file passed over; clip.mov: format not supported; convert it to JPEG",
        "left out: 1 image in no subfolder"]


def test_a_data_root_can_be_handed_to_processes_however_they_start(tmp_path):
    photos(tmp_path, "cat/1.jpg", "dog/1.jpg")
    code = """if True:
        import multiprocessing, sys
        from datasets.layout import DataRoot
        if __name__ == "__main__":
            root = DataRoot(sys.argv[1])
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(root.entries, ("train_aug",)))
    """
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=100)
    assert "Entry(id='dog__1', labels=(1,))" in done.stdout, done.stderr


# A held-out share

def drawn(count: int) -> list[Entry]:
    rng = random.Random(1)
    return [Entry(f"photo {i}", tuple(sorted(rng.sample(range(4), rng.randint(0, 2)))))
            for i in range(count)]


def test_a_share_is_held_out_by_seed():
    entries = drawn(200)
    training, held = split(entries, 0.1, seed=3)
    assert len(held) == 20 and sorted([*training, *held], key=entries.index) == entries
    assert split(entries, 0.1, seed=3) == (training, held)
    assert split(list(reversed(entries)), 0.1, seed=3)[1] == list(reversed(held))
    assert split(entries, 0.1, seed=4)[1] != held
    _, more = split(drawn(220), 0.1, seed=3)
    assert len({entry.id for entry in more} & {entry.id for entry in held}) >= 15


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_no_class_loses_its_last_image(share):
    entries = [Entry("a", (0,)), Entry("b", (1,)), Entry("c", (0, 2)), Entry("d", ())]
    training, held = split(entries, share, seed=0)
    assert {label for entry in training for label in entry.labels} == {0, 1, 2}
    assert (len(held) == 0) == (share < 0.2)
    assert split([], share, 0) == ([], [])


# Speed

def test_20000_images_in_a_table_take_linear_time(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    for i in range(20_000):
        (folder / f"{i}.jpg").touch()
    with open(tmp_path / "labels.csv", "w") as file:
        file.write("image,label\n")
        file.writelines(f"x/{i}.jpg,cat;c{i % 200}\n" for i in range(20_000))
    start = time.process_time()
    root = DataRoot(tmp_path)
    assert len(root.entries("train_aug")) == 20_000 and len(root.classes) == 201
    assert time.process_time() - start < 10
    assert isinstance(root.pictures, Pictures)


def test_a_list_is_read_alike_where_no_name_holds_a_space(tmp_path):
    """Then only the first word of a line can be the name, which is looked up faster."""
    photos(tmp_path / "photos", "a.jpg", "b.jpg", "sub/c.jpg", "sub/a.jpg", "other/d.jpg")
    lines = ["b 0", "b.jpg,cat", "sub/c 1", "sub\\a.jpg dog cat", "d", "c", "a\t0", "e 0", "",
             "my photos/other/d.jpg 0", "b 7", "  b  -  ", "c cat, dog"]

    def read(pictures: Pictures) -> list[str]:
        found = []
        for number, line in enumerate(lines):  # a list each, so that no image is there twice
            path = write(tmp_path / f"{number}.txt", line)
            found += map(str, read_list(path, pictures, {"cat": 0, "dog": 1}))
        return found

    plain, spaced = Pictures(tmp_path / "photos"), Pictures(tmp_path / "photos")
    assert not plain.spaced
    spaced.spaced = True
    assert read(plain) == read(spaced) and len(read(plain)) == len(lines) - 1
    photo(tmp_path / "photos" / "b 0.jpg")
    assert Pictures(tmp_path / "photos").spaced
