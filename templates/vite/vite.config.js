import { defaultClientConditions } from 'vite'

export default {
  base: './',
  // Without this condition, the build would have the 27 MB of ONNX Runtime twice.
  resolve: { conditions: ['onnxruntime-web-use-extern-wasm', ...defaultClientConditions] },
}
