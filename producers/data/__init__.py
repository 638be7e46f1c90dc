"""The bundled data set. ``NOTICE`` says where it comes from and under which licence it may be passed on."""
