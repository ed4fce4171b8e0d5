"""Real machines: `fedcl server` supervises a SuperLink, `fedcl client` a SuperNode.

serving.py    the server's supervisor: SuperLink, submission, progress, what happens when one of them dies
joining.py    the client's supervisor: SuperNode, warm worker, waiting for a server that is away
flower.py     what Flower is told: commands, environment, the connection; its answers, read
nodes.py      the nodes that may take part
numbers.py    which number each client has
bundle.py     the app that the SuperLink ships to the nodes: no code, and how a node makes sure of that
gate.py       what runs in the place of Flower's commands: no app but fedcl's own, on a node and on the server
access.py     who may call which route of a SuperLink or a SuperNode
superlink.py  Flower's servers behind that gate; where Flower is built otherwise, nothing runs
secret.py     by what a server knows the processes of its own machine
tail.py       a file of lines that another process writes
processes.py  a child process with a log, that does not outlive its supervisor
"""
