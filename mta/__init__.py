"""The server: a relaying MTA on asyncio, its decisions in `mta.core`."""
