// Lets `lowrank/ai-sdk` compile without the package. The published declarations have the package's own types.

declare module '@ai-sdk/openai-compatible' {
  export interface OpenAICompatibleProvider {
    (modelId: string): object
    completionModel(modelId: string): object
    embeddingModel(modelId: string): object
  }
  export function createOpenAICompatible(settings: {
    name: string
    baseURL: string
    fetch: typeof fetch
    includeUsage: boolean
    supportsStructuredOutputs: boolean
  }): OpenAICompatibleProvider
}
