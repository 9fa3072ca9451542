"""Arms on equal terms, statistics, tables and figures: how a controller of growth is judged."""
