"""A GGUF file with the same weights in 32 bits, for bench/serve-llama.mjs.

    pip install gguf==0.19.0 && python scripts/golden/gguf_f32.py IN.gguf OUT.gguf
"""

import sys

import gguf
import numpy as np

source, target = sys.argv[1:]
# Its own fields the writer makes itself.
OWN = {"general.architecture", "general.file_type", "general.quantization_version"}

reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name in OWN or name.startswith("GGUF."):
        continue
    [kind, *_, last] = [*field.types, field.types[-1]]
    is_array = kind == gguf.GGUFValueType.ARRAY
    writer.add_key_value(name, field.contents(), kind, sub_type=last if is_array else None)
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
for tensor in reader.tensors:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    writer.add_tensor(tensor.name, np.ascontiguousarray(values).reshape(tensor.shape[::-1].tolist()))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
