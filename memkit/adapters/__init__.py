"""Other people's types and stores: each module here translates one of them. None needs their package."""
