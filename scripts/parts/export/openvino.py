"""OpenVINO's form: FILE.xml and FILE.bin, with float32 weights, compared in OpenVINO."""

import json

from engine.inference.engines.openvino_engine import HINTS, OpenVinoEngine, require_native, to_openvino
from engine.inference.engines.tracing import ConversionError
from utils.cli import importing

from .export_job import ExportError, Job
from .program import trace

# px of dynamic sizes, as for onnxruntime
SMALLEST = 20
ROUNDED = 0.2  # of the logits' standard deviation, that bfloat16 may change


def export(job: Job) -> None:
    """Raises:
    ConfigError: the package is missing, or this processor only emulates bfloat16, which then cannot be compared.
    DataError: there are no images to compare logits of.
    ExportError: the model cannot be exported, or gives other logits.
    """
    require_native(job.options.precision)
    with importing("openvino"):
        import openvino
    job.require_images()
    file, settings = f"{job.name}.xml", {"INFERENCE_PRECISION_HINT": HINTS[job.options.precision]}
    with job.staged() as folder:
        try:
            model = to_openvino(trace(job, {"min": 33, "max": 4096}))
            for key, value in {**job.description(), "precision": job.options.precision, "settings": settings}.items():
                model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["fat", key])
            openvino.save_model(model, str(folder / file), compress_to_fp16=False)
            compared = job.compare(OpenVinoEngine(folder / file, by_shape=False), SMALLEST)
            if job.options.precision != "float32":
                rounded = job.compare(
                    OpenVinoEngine(folder / file, job.options.precision, by_shape=False),
                    SMALLEST,
                    bound=max(job.options.bound, ROUNDED),
                )
                compared = {**compared, job.options.precision: rounded}
        except ConversionError as error:
            raise ExportError(f"--checkpoint: {job.cfg.MODEL.NAME} {error}") from error
        job.describe(
            folder, file, compared, weights_file=f"{job.name}.bin", precision=job.options.precision, settings=settings
        )
