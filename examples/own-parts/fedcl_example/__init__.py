"""A client method, a server method, a data set and a model of one's own for fedcl."""
