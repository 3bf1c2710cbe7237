"""The forecast held against real processes: nodes and client in network namespaces, on real sockets, in real time.

`networks.py` names what is measured, `clocks.py` takes times, `single.py` and `local_costs.py` measure what the
forecast is told of this machine, `predict.py` asks the forecast and the planner, `verdict.py` compares.
"""
