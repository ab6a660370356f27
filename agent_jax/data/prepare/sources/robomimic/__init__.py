"""robomimic, MimicGen, RoboCasa and LIBERO: HDF5 demonstrations."""
