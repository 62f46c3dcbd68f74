"""CarHE, as its paper describes it (``model``) and as its code does it (``clip``)."""
