"""The parts of ``locustfile.py``: users' connections, what they were told, and the judgement of it.

Only `settlement` and the locustfile know locust. The others block on sockets and on `time.sleep`,
which locust has replaced by gevent's.
"""
