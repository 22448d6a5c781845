"""Writes a trained model in forms that other programs use; each is loaded anew and compared with the model on real images.

    python scripts/export.py onnx --checkpoint output/fat_b0/default/best.pth
    python scripts/export.py onnx program aoti hub int8 --checkpoint best.pth --output exported --images photos/

Exit statuses: 0 done; 1 an exported model's logits or accuracy are further off than allowed, or the model cannot be exported;
2 an argument, image or package is missing or cannot be used; 3 the checkpoint cannot be used; 5 a file cannot be written.
After an error a format leaves no file; the others are written.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Optional, Sequence

from command_line import Parser, add_weights, not_negative, run_script, whole_number
from utils.errors import ConfigError, UserError, did_you_mean, printable
from utils.image_size import size_text

FORMATS = {  # by name: what it is; a module of parts/export/ each
    "onnx": "ONNX file, for onnxruntime and other engines",
    "openvino": "OpenVINO's form: .xml and .bin with float32 weights, compared in OpenVINO",
    "program": "torch.export program, for torch without this project's code",
    "aoti": "AOTInductor package: compiled for this kind of machine, for C++ or Python",
    "hub": "folder for the Hugging Face hub: safetensors weights, timm's config.json, model card",
    "int8": "ONNX file with convolutions in 8 bits, calibrated on training images",
}


OF_CLASSES = ("hub", "int8")  # timm's models of classes; int8 is measured by their top-1


def known_format(text: str) -> str:
    if text not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is none; {did_you_mean(text, FORMATS)}")
    return text


def build_parser() -> Parser:
    parser = Parser(
        description=__doc__ + "\nFormats:\n" + "\n".join(f"  {name:8} {text}" for name, text in FORMATS.items())
    )
    parser.add_argument("format", nargs="+", type=known_format, help="one or more of " + ", ".join(FORMATS))
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="of main.py; or weights alone, with --cfg and --classes"
    )
    parser.add_argument("--output", type=Path, default=Path("exported"), help="folder to write to (default: exported)")
    parser.add_argument("--cfg", type=Path, help="config, for a checkpoint without one; it wins over the checkpoint's")
    parser.add_argument(
        "--classes",
        default="",
        help="text file with a class' name in each line, or imagenet-1k, for a checkpoint without names",
    )
    add_weights(parser)
    parser.add_argument(
        "--images",
        type=Path,
        nargs="+",
        default=[],
        help="image files and folders to compare logits of (default: validation images)",
    )
    parser.add_argument("--data-path", default="", help="data set, where it is not at the checkpoint's DATA.DATA_PATH")
    parser.add_argument(
        "--bound",
        type=not_negative,
        default=1e-3,
        help="largest difference of logits, in their standard deviations (default: 0.001)",
    )
    parser.add_argument(
        "--dynamic-size",
        action="store_true",
        help="images of any height and width, not only the model's own (onnx, openvino, program, aoti)",
    )
    parser.add_argument("--opset", type=whole_number(1), default=20, help="of ONNX files (default: 20)")
    parser.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="in which openvino's form is to be run; the file says so (default: float32)",
    )
    parser.add_argument(
        "--calibration-images", type=whole_number(1), default=512, help="training images for int8 (default: 512)"
    )
    parser.add_argument(
        "--max-drop", type=not_negative, default=1.0, help="top-1 points that int8 may lose (default: 1)"
    )
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.precision != "float32" and "openvino" not in args.format:
        parser.error(f"--precision {args.precision}: is for openvino; leave it out")
    from engine.inference.trained import load_trained
    from parts.export.export_job import Job, Options

    trained = load_trained(args.checkpoint, args.cfg, args.classes, args.weights)
    for line in trained.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr, flush=True)
    options = Options(args.bound, args.dynamic_size, args.opset, args.calibration_images, args.max_drop, args.precision)
    job = Job(trained, args.output, args.images, args.data_path, options)
    print(
        f"{args.checkpoint}: {job.cfg.MODEL.NAME}, {trained.weights} weights, {len(trained.classes)} classes, {size_text(job.size)} px",
        flush=True,
    )
    if trained.note:
        print(f"note: {args.checkpoint}: {trained.note}", flush=True)
    status = 0
    for name in dict.fromkeys(args.format):
        print(f"{name}:", flush=True)
        try:
            if trained.cfg.TASK == "detection":
                raise ConfigError(
                    f"{name}: a detector is not exported, as how much it finds is part of its form; use torch"
                )
            if name in OF_CLASSES and trained.cfg.TASK != "classification":
                raise ConfigError(
                    f"{name}: is for models of images' classes, and the checkpoint is of TASK {trained.cfg.TASK}; use another format"
                )
            importlib.import_module(f"parts.export.{name}").export(job)
        except UserError as error:
            if len(args.format) == 1:
                raise
            status = status or error.status  # the other formats are written
            print(f"error: {name}: {printable(error)}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    run_script(main)
