"""How the library lives inside PyTorch: which kernels run on which device, cached weights, sharded
parameters, registered operators, forward-mode derivatives and the checks of arguments.
"""

from spectral_triton.runtime.backend import backend_info, use_backend
from spectral_triton.runtime.cached import cached

__all__ = ["backend_info", "cached", "use_backend"]
