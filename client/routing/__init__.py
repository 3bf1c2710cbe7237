"""From a router's choice to the layer's routed output, through the swarm.

Read in this order: `dispatch` (the whole path of a layer), `grouping` (experts per token turned round), `choose` (which
replica, a pure function), `exchange` (one request and the checks of its answer), `hedge` (asking twice), `health` (what
we know of a holder), `holders` with `audit` (who may be asked at all), `combine` (one order of summation).
`model_id` is what every request says of the model; `peers` is holders as a user sees them.
"""
