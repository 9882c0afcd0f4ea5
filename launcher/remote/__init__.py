"""A login node, reached from another machine: the same launcher there, one connection, messages in lines of JSON.

In: the name of a login node. Out: a `Session` that sends requests and knows nothing of SSH; a lost connection ends no
driver. Open `session` first, then `messages` (the protocol) and `agent` (the far side). `opener` is the interface of a
connection, `by_paramiko` and `by_openssh` implement it; `destination` finds the hosts, `known_hosts` their keys.
`bundle`, `commands`, `following`, `fetching` and `tidying` are the requests, both sides of each in one file. `install`
sends `far_install` when there is no launcher yet.
"""
