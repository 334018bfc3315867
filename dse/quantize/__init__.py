"""Quantizers: from full-precision weights to the values a format can hold.

Every module of this package is loaded here, so that one that registers a number-format kind in
``quantizer.QUANTIZERS`` is found without being named anywhere.
"""

from __future__ import annotations

import importlib
import pkgutil

from dse.quantize.fake import QuantizedTensor, dequantize, fake_quantize, quantize_codes

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["QuantizedTensor", "dequantize", "fake_quantize", "quantize_codes"]
