"""Any server that speaks OpenAI's HTTP API, as an engine: metered here, and not believed."""
