"""A network applied to a scan: cropped to the head, cut into tiles, and a mask on the scan's own grid."""
