"""What a cell is: its settings, its method, its identity; and cards to predict for."""
