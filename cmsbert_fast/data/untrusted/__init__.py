"""Untrusted files: what reading one can and cannot do.

Data sets of this field are passed around as pickles and HDF5 files, and both formats let a file attack its reader.
Whatever bytes a file holds, reading it with this project

- runs no code: the pickle machine builds plain values and arrays, and calls nothing that a file names (`machine`,
  `names`);
- opens no other file: HDF5 links, virtual and external data sets are refused (`cmsbert_fast.data.streams.csd`);
- takes memory in proportion to the size of the file: every object is charged before it is made (`limits`), 16 times the
  size plus 64 MiB for pickles, 10 times plus 64 MiB for streams and tables;
- neither crashes nor hangs this process in the HDF5 library: another process, with little memory and time, opens the
  file first (`child`);
- ends in examples or in a `DataError` of one sentence, never in another exception (`cmsbert_fast.data.wrappers`).

It does not guarantee that values are right, or that a file stays the same while it is read.
"""
