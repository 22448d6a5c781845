"""BatchNorm over several processes is BatchNorm over all their images."""

import pytest
import timm
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from conftest import load, run, run_processes
from engine.setup.model import prepare_model
from models.sync_batchnorm import PLAIN_KERNELS, TORCH_KERNELS, SyncBatchNorm, SyncBatchNormAct, synchronise_batchnorm
from utils.errors import ConfigError

CPU = torch.device("cpu")


def draws(shape, dtype=torch.float64):
    """Images whose mean is far from 0, and what the result is multiplied by."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, *shape, generator=generator, dtype=torch.float64).mul(3).add(50).to(dtype))


def norm_of(channels, **settings):
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(channels, **settings)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm.double()


def results(norm, images, weights):
    """Output and gradients; the running statistics are the norm's."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    output = norm(images)
    (output * weights).sum().backward()
    return output.detach(), images.grad, [p.grad for p in norm.parameters()]


def join():
    """Rank and number of processes, which meet."""
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def compare_with_one_process(sizes, settings, memory_format):
    rank, world_size = join()
    images, weights = (t.to(memory_format=memory_format) for t in draws((sum(sizes), 6, 5, 4)))
    whole = norm_of(6, **settings)
    norm = SyncBatchNorm.of(norm_of(6, **settings))
    for _ in range(2):  # the running statistics twice
        whole.zero_grad(), norm.zero_grad()
        output, grad, grads = results(whole, images, weights)
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        my_output, my_grad, my_grads = results(norm, images[mine], weights[mine])
    torch.testing.assert_close(my_output, output[mine], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(my_grad, grad[mine], rtol=1e-12, atol=1e-12)
    assert my_output.stride() == output[mine].stride()
    for theirs, ours in zip(grads, my_grads, strict=True):
        dist.all_reduce(ours)  # as DDP does
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-10)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(dict(norm.named_buffers())[name], buffer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.eval()(images), whole.eval()(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes, settings, memory_format", [
    ([3, 3], {}, torch.channels_last), ([2, 2, 2, 2], {"momentum": None}, torch.contiguous_format),
    ([1, 4], {"affine": False}, torch.contiguous_format), ([2, 2], {"track_running_stats": False}, torch.channels_last),
])  # fmt: skip
def test_several_processes_are_one_with_all_images(sizes, settings, memory_format):
    run_processes(len(sizes), compare_with_one_process, sizes, settings, memory_format)


def compare_in_16_bits():
    rank, _ = join()
    images, weights = draws((4, 6, 5, 4), torch.bfloat16)
    torch.manual_seed(1)
    whole = nn.BatchNorm2d(6)
    norm = SyncBatchNorm.of(nn.BatchNorm2d(6))
    output, grad, _ = results(whole, images, weights)
    my_output, my_grad, _ = results(norm, images[2 * rank :][:2], weights[2 * rank :][:2])
    assert my_output.dtype is my_grad.dtype is torch.bfloat16
    torch.testing.assert_close(my_output, output[2 * rank :][:2])
    torch.testing.assert_close(my_grad, grad[2 * rank :][:2], rtol=0.02, atol=0.2)
    assert norm.running_mean.dtype is torch.float32


def test_maps_of_16_bits_have_statistics_of_32():
    run_processes(2, compare_in_16_bits)


def test_conversion_shares_tensors_and_keeps_activations():
    for name in ("efficientnet_b0", "fat_tiny", "levit_128s"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            before, tensors = model(images), {n: t.data_ptr() for n, t in model.state_dict(keep_vars=True).items()}
            converted = synchronise_batchnorm(model)
            assert torch.equal(converted(images), before)
        assert {n: t.data_ptr() for n, t in converted.state_dict(keep_vars=True).items()} == tensors
        norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms and all(isinstance(m, SyncBatchNorm) and not m.training for m in norms)
    act = synchronise_batchnorm(BatchNormAct2d(3, act_layer=nn.SiLU))
    assert isinstance(act, SyncBatchNormAct) and isinstance(act.act, nn.SiLU)


def test_torch_s_kernels_take_what_ours_take():
    for ours, theirs in zip(PLAIN_KERNELS, TORCH_KERNELS):
        schema = getattr(torch.ops.aten, theirs.__name__).default._schema
        assert ours.__code__.co_argcount == len(schema.arguments), theirs


# In a run


def note_layers(output, sync_bn):
    join()
    model = prepare_model(timm.create_model("fat_tiny"), CPU, True, False, sync_bn=sync_bn)
    found = {type(m) for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert found == {SyncBatchNorm if sync_bn == "all" else nn.BatchNorm2d}
    with pytest.raises(ConfigError, match="TRAIN.SYNC_BN torch"):
        prepare_model(model, CPU, True, False, sync_bn="torch")


@pytest.mark.parametrize("sync_bn", ["auto", "all", "none"])
def test_cpus_synchronise_where_it_is_asked_for(sync_bn, tmp_path):
    run_processes(2, note_layers, tmp_path, sync_bn)


def test_two_processes_train_as_one(write_config, tmp_path):
    """The same images per update give the same weights, BatchNorm's statistics among them; checkpointing changes no bit."""
    path = write_config(
        MODEL={"DROP_PATH_RATE": 0.0}, TRAIN={"EPOCHS": 1, "WARMUP_EPOCHS": 0, "BASE_LR": 1e-3}, AUG={"MIXUP": 0.0, "CUTMIX": 0.0}
    )  # fmt: skip
    common = ["--opts", "TRAIN.TOTAL_BATCH_SIZE", 8, "TRAIN.SYNC_BN", "all"]
    run("--cfg", path, "--tag", "one", "--batch-size", 8, *common)
    for tag, flags in (("two", []), ("recomputed", ["--use-checkpoint"])):
        argv = ["--cfg", path, "--tag", tag, "--batch-size", 4, *flags, *common]
        run_processes(2, run, *argv)
    folder = tmp_path / "output/fat_tiny"
    one, two, recomputed = (load(folder / tag / "last.pth")["model"] for tag in ("one", "two", "recomputed"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3, msg=name)
        assert torch.equal(two[name], recomputed[name]), name
