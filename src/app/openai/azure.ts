// Azure OpenAI: OpenAI's routes below a resource's own address, with another header for the key. Its models answer
// under the names of deployments.

import { checkAddress } from '../../core/base/post-json.js'
import { openai } from './openai.js'
import { type Provider, requireKey } from './provider.js'

export const azure: Provider = {
  ...openai,
  name: 'azure',
  connect({ AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_API_KEY }) {
    return {
      url: `${checkAddress(AZURE_OPENAI_ENDPOINT, 'AZURE_OPENAI_ENDPOINT')}/openai/v1`,
      headers: { 'api-key': requireKey('AZURE_OPENAI_API_KEY', AZURE_OPENAI_API_KEY) },
    }
  },
}
