"""RLDS: TFRecord and array_record data sets of tensorflow-datasets."""
