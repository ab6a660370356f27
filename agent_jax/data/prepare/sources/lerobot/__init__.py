"""LeRobot: parquet tables and videos."""
