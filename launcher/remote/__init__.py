"""A login node, reached from elsewhere: the same launcher there, one connection, messages in lines of JSON.

In: the name of a login node. Out: a `Session` that asks and follows, which knows nothing of SSH; a connection that goes
away ends nothing there. Open `session` first, then `messages` (what is said) and `agent` (the far side); `opener` is
what carries them, `by_paramiko` and `by_openssh` do, `destination` says where to, `known_hosts` to whom. `bundle`,
`commands`, `following`, `fetching` and `tidying` are what is asked for: both sides of each are in one file. `install`
sends `far_install` before there is a launcher.
"""
