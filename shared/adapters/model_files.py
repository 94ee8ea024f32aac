"""A model as files: what is written, and how it is checked when read. No storage here: bytes in, bytes out.

weights.safetensors   float32 tensors, see shared.model.network.Weights
items.json            list of item ids in index order
manifest.json         Manifest.to_json: config, metrics, lineage, checksums, fingerprint
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from shared.core.errors import ModelDamaged
from shared.core.registry_port import FORMAT, Manifest, Model
from shared.model.network import check_weights

WEIGHTS, ITEMS, MANIFEST = "weights.safetensors", "items.json", "manifest.json"


def encode_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """safetensors. Same tensors, same bytes."""
    return bytes(safetensors.save({name: tensors[name].detach().contiguous() for name in sorted(tensors)}))


def encode_model(weights: Mapping[str, torch.Tensor], items: Sequence[str]) -> dict[str, bytes]:
    """file name -> content, without the manifest. Raises ModelDamaged where the parts do not fit each other."""
    _check(weights, items, "weights to publish")
    exact = {name: tensor.float() for name, tensor in weights.items()}
    return {WEIGHTS: encode_tensors(exact), ITEMS: msgspec.json.encode(list(items))}


def describe(
    version: str,
    files: Mapping[str, bytes],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    lineage: Mapping[str, Any],
) -> Manifest:
    """The manifest of these files."""
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Manifest(version, _fingerprint(checksums), config, metrics, lineage, checksums)


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON, indented for people."""
    return msgspec.json.format(msgspec.json.encode(manifest.to_json()), indent=2) + b"\n"


def decode_manifest(content: bytes, version: str, name: str) -> Manifest:
    """name: of the file, for the message. Raises ModelDamaged."""
    try:
        found = msgspec.json.decode(content, type=dict[str, Any])
        checksums = {str(k): str(v) for k, v in found["checksums"].items()}
        manifest = Manifest(
            version=str(found["version"]),
            fingerprint=int(found["fingerprint"], 16),
            config=found["config"],
            metrics=found["metrics"],
            lineage=found["lineage"],
            checksums=checksums,
        )
        format_ = found["format"]
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ModelDamaged(f"{name}: not a manifest: {error!r}") from error
    if format_ != FORMAT:
        raise ModelDamaged(f"{name}: format {format_}, this program reads {FORMAT}")
    if manifest.version != version:
        raise ModelDamaged(f"{name}: is of version {manifest.version}")
    missing = [file for file in (WEIGHTS, ITEMS) if file not in checksums]
    if missing:
        raise ModelDamaged(f"{name}: no checksum of {', '.join(missing)}")
    if manifest.fingerprint != _fingerprint(checksums):
        raise ModelDamaged(f"{name}: the fingerprint is not that of {WEIGHTS}")
    return manifest


def verify(manifest: Manifest, file: str, content: bytes, name: str) -> None:
    """Raises ModelDamaged, naming ``name``, where the content is not what was published as ``file``."""
    if hashlib.sha256(content).hexdigest() != manifest.checksums[file]:
        raise ModelDamaged(f"{name}: {len(content)} bytes whose checksum is not that of the manifest")


def decode_model(manifest: Manifest, weights: bytes, items: bytes, folder: str) -> Model:
    """Raises ModelDamaged naming file and reason."""
    verify(manifest, WEIGHTS, weights, f"{folder}/{WEIGHTS}")
    verify(manifest, ITEMS, items, f"{folder}/{ITEMS}")
    try:
        tensors = safetensors.load(weights)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelDamaged(f"{folder}/{WEIGHTS}: {error}") from error
    try:
        ids = msgspec.json.decode(items, type=list[str])
    except msgspec.DecodeError as error:
        raise ModelDamaged(f"{folder}/{ITEMS}: {error}") from error
    _check(tensors, ids, folder)
    return Model(manifest, ids, tensors)


def _check(weights: Mapping[str, torch.Tensor], items: Sequence[str], where: str) -> None:
    try:
        count, _ = check_weights(weights)
    except ModelDamaged as error:
        raise ModelDamaged(f"{where}: {error}") from error
    if count != len(items):
        raise ModelDamaged(f"{where}: {count} embeddings for {len(items)} items")
    if len(set(items)) != len(items):
        raise ModelDamaged(f"{where}: an item id occurs twice")
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ModelDamaged(f"{where}: {name} holds numbers that are not finite")


def _fingerprint(checksums: Mapping[str, str]) -> int:
    return int(checksums[WEIGHTS][:16], 16)
