//! The same code under bytes that no resolver would send.
