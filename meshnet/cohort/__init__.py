"""Many scans: BIDS derivatives, work that processes share, the table and the page of a cohort, DICOM in and out."""
