"""What a run trains on and with: oracle, scope, corpus, data of a site."""
