"""Which device a policy runs on."""

import jax

from models.checkpoints.openpi import parameter_count
from models.compiled import Device
from models.config import Config
from playground.policies.base import SMALL


def device_for(config: Config, default: Device | None = None) -> Device:
    """The host's processor for a model that it answers in under 100 ms, wherever JAX would put it:
    so a small policy gives the same bits with and without a GPU. Else the default device.

    The bundled policies have 1.5 and 2 million parameters and answer in 34 to 95 ms on a CPU; on an
    H200 they took 71 to 330 ms. Models of 68 and 77 million take a CPU a second and more.
    """
    default = default or jax.devices()[0]
    if parameter_count(config) > SMALL:
        return default
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return default
