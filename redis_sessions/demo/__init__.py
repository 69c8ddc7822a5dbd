"""`demo`: worker processes share sessions through a server of their own, with native expiry and without."""
