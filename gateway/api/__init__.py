"""What requests mean, written once for the front and the edge: a Request becomes an Answer."""
