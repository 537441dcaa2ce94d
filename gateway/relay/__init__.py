"""Token streams: answers of models, and whatever else comes bit by bit and must be whole.

A token stream outlives whoever watches it. Its events go to a channel, which holds all of them
until it expires; where the worker that makes it dies, viewers get an error that says so.

1. *One writer.* Only the worker that holds a stream's lease publishes to its channel. The last
   event ends the channel, and whatever comes after that the bus refuses: so the end is told exactly
   once, whoever tells it.
2. *No hole.* What goes to the channel goes in the order in which it came, or the stream ends with
   an error. Nothing that was taken from the producer is left out.
3. *Nothing waits for viewers*, and nothing that they do ends a stream, unless that was asked for.
"""
