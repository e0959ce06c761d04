"""The live page: `uploads` and `session` do the work and know no web framework, `page` shows it, `server` guards it."""
