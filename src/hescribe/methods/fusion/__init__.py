"""fusion, our own method: expression programs (``programs``), retrieval (``retrieval``), and what joins them (``model``)."""
