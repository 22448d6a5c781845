"""Shows what a model looks at and what it gets wrong, as PNG files and as images in TensorBoard.

    python scripts/visualize.py attention photo.jpg --checkpoint best.pth --points 0.5,0.5 0.2,0.7
    python scripts/visualize.py fasa photo.jpg --checkpoint best.pth --stage 2 --channels 0 5 9
    python scripts/visualize.py grad-cam *.jpg --checkpoint best.pth --class "golden retriever"
    python scripts/visualize.py features photo.jpg --checkpoint best.pth --stage 1 --number 32
    python scripts/visualize.py mistakes --checkpoint best.pth --data-path datasets/digits
    python scripts/visualize.py neighbours vectors.npz --k 6
    python scripts/visualize.py map vectors.npz
    python scripts/visualize.py <kind> --help
    tensorboard --logdir output       # the runs' curves, and these pictures under Images

Exit statuses: 0 done; 2 an argument cannot be used, or an image cannot be read (the others are done); 3 a checkpoint that
cannot be used; 5 a file that cannot be written.
"""

import importlib
import sys
from typing import Optional, Sequence

from command_line import Parser, importing, run_script
from utils.errors import printable

KINDS = {  # by name: what it makes; a module show_* of parts/visualize/ each
    "attention": "attention of chosen points, per stage and head of FASA",
    "fasa": "FASA's local side, global side and what they give together, per stage",
    "grad-cam": "Grad-CAM of the predicted or a chosen class; of any model",
    "features": "feature maps of a model's stages; of any model",
    "mistakes": "the worst mistakes and the confusion matrix of an evaluation; of any model",
    "neighbours": "images beside those with the nearest embeddings, of a file of predict.py --embeddings",
    "map": "a map of such a file's images, by PCA or t-SNE, coloured by class",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status."""
    parser, modules = build_parser()
    args = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    if not args.kind:
        parser.error(f"say what to show: {', '.join(KINDS)}")
    unreadable = modules[args.kind].make(args)
    for line in unreadable:
        print(f"error: {printable(line)}", file=sys.stderr)
    return 2 if unreadable else 0


def build_parser() -> tuple[Parser, dict]:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="kind", metavar="kind")
    with importing():
        modules = {kind: importlib.import_module(f"parts.visualize.show_{kind.replace('-', '_')}") for kind in KINDS}
    for kind, text in KINDS.items():
        modules[kind].add_arguments(commands.add_parser(kind, help=text, description=modules[kind].__doc__))
    return parser, modules


if __name__ == "__main__":
    run_script(main)
