"""The rules by which operations on many hosts at once are carried out; importing a module registers its rules."""
