"""The server: an MTA on asyncio that relays and delivers, its decisions in `mta.core`."""
