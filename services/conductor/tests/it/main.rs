//! Workflows on a real database and the local bus, with a stand-in for dispatcher and permissions.
