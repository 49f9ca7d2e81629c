"""The Parquet sink: samples from Kafka into files on a disk, an object store or HDFS, each row in the data set exactly once."""
