"""A package of compiled code for this kind of machine, without Python: `torch._inductor.aoti_load_package("x.aoti.pt2")(images)`."""

import json

import torch
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from utils.errors import ConfigError

from .export_job import ExportError, Job, first_line
from .program import limits, traced


def export(job: Job) -> None:
    """Raises:
    ConfigError: there is no C++ compiler.
    ExportError: the model cannot be compiled, or gives other logits.
    """
    require_compiler()
    file = f"{job.name}.aoti.pt2"
    program = traced(job)
    with job.staged() as folder:
        metadata = {"description": json.dumps(job.description())}
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / file), inductor_configs={"aot_inductor.metadata": metadata}
            )
        except OSError:
            raise
        except Exception as error:  # of the compiler's many kinds
            raise ExportError(f"--checkpoint: {job.cfg.MODEL.NAME} cannot be compiled ({first_line(error)})") from error
        package = torch._inductor.aoti_load_package(str(folder / file))
        job.describe(folder, file, job.compare(package), **limits(job))


def require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, InductorError, OSError) as error:
        raise ConfigError(
            "aoti: needs a C++ compiler, and there is none; install g++ (apt install g++) or set CXX"
        ) from error
