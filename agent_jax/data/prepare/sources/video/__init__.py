"""Videos, with text, with gamepad or keyboard recordings, and DICOM cines."""
