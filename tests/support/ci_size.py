"""A config file's own mesh, batch arithmetic and windows with a model of CI size, as flags of a command line."""

CI_SIZE = [
    *(f"--config.model.{part}.{field}={value}" for part in ("vision", "language", "mae")
      for field, value in (("width", 64), ("depth", 2), ("heads", 4), ("mlp_width", 128))),
    "--config.model.vision.image_size=112", "--text_ids=1000",
]
