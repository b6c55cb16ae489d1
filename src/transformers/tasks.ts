// The tasks of pipelines that adapters can be used in: which classes of transformers.js stand behind each.
