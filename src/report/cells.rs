//! Cells of a table that was read, column by column, each with a name to fail by.

use super::table::TableError;
use polars::prelude::{
    BooleanType, ChunkedArray, Column, DataFrame, DataType, Float64Type, PolarsError, StringType, UInt64Type,
};

/// A frame whose columns are asked for by name and type.
#[derive(Debug, Clone, Copy)]
pub struct CellReader<'f> {
    frame: &'f DataFrame,
}

/// One column.
#[derive(Debug)]
pub struct CellColumn<A> {
    name: &'static str,
    cells: A,
}

impl<'f> CellReader<'f> {
    /// A reader of the frame.
    #[must_use]
    pub fn new(frame: &'f DataFrame) -> Self {
        Self { frame }
    }

    /// A column of texts.
    ///
    /// # Errors
    /// There is none, or it holds something else.
    pub fn strings(&mut self, name: &'static str) -> Result<CellColumn<ChunkedArray<StringType>>, TableError> {
        let column = self.cast(name, &DataType::String)?;
        let cells = column.str().map_err(|source| TableError::Column { column: name, source })?;
        Ok(CellColumn { name, cells: cells.rechunk().into_owned() })
    }

    /// A column of whole numbers.
    ///
    /// # Errors
    /// As [`Self::strings`].
    pub fn integers(&mut self, name: &'static str) -> Result<CellColumn<ChunkedArray<UInt64Type>>, TableError> {
        let column = self.cast(name, &DataType::UInt64)?;
        let cells = column.u64().map_err(|source| TableError::Column { column: name, source })?;
        Ok(CellColumn { name, cells: cells.rechunk().into_owned() })
    }

    /// A column of numbers.
    ///
    /// # Errors
    /// As [`Self::strings`].
    pub fn floats(&mut self, name: &'static str) -> Result<CellColumn<ChunkedArray<Float64Type>>, TableError> {
        let column = self.cast(name, &DataType::Float64)?;
        let cells = column.f64().map_err(|source| TableError::Column { column: name, source })?;
        Ok(CellColumn { name, cells: cells.rechunk().into_owned() })
    }

    /// A column of yes and no.
    ///
    /// # Errors
    /// As [`Self::strings`].
    pub fn booleans(&mut self, name: &'static str) -> Result<CellColumn<ChunkedArray<BooleanType>>, TableError> {
        let column = self.cast(name, &DataType::Boolean)?;
        let cells = column.bool().map_err(|source| TableError::Column { column: name, source })?;
        Ok(CellColumn { name, cells: cells.rechunk().into_owned() })
    }

    /// A cell that does not convert becomes empty only if it was.
    fn cast(&self, name: &'static str, kind: &DataType) -> Result<Column, TableError> {
        let found = self.frame.column(name).and_then(|found| found.strict_cast(kind));
        found.map_err(|source| TableError::Column { column: name, source })
    }
}

impl CellColumn<ChunkedArray<StringType>> {
    /// A cell; `None` if it is empty.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<&str> {
        self.cells.get(row)
    }

    /// A cell that may not be empty.
    ///
    /// # Errors
    /// It is.
    pub fn filled(&self, row: usize) -> Result<&str, TableError> {
        self.get(row).ok_or(TableError::Empty { column: self.name, row })
    }
}

impl CellColumn<ChunkedArray<UInt64Type>> {
    /// A cell that may not be empty.
    ///
    /// # Errors
    /// It is.
    pub fn filled(&self, row: usize) -> Result<u64, TableError> {
        self.cells.get(row).ok_or(TableError::Empty { column: self.name, row })
    }

    /// A cell that may not be empty and fits 32 bits.
    ///
    /// # Errors
    /// It does not.
    pub fn narrow(&self, row: usize) -> Result<u32, TableError> {
        let value = self.filled(row)?;
        let many = || PolarsError::ComputeError(format!("row {row} is {value}, more than 32 bits hold").into());
        u32::try_from(value).map_err(|_| TableError::Column { column: self.name, source: many() })
    }
}

impl CellColumn<ChunkedArray<Float64Type>> {
    /// A cell; `None` if it is empty.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<f64> {
        self.cells.get(row)
    }

    /// A cell that may not be empty.
    ///
    /// # Errors
    /// It is.
    pub fn filled(&self, row: usize) -> Result<f64, TableError> {
        self.get(row).ok_or(TableError::Empty { column: self.name, row })
    }
}

impl CellColumn<ChunkedArray<BooleanType>> {
    /// A cell that may not be empty.
    ///
    /// # Errors
    /// It is.
    pub fn filled(&self, row: usize) -> Result<bool, TableError> {
        self.cells.get(row).ok_or(TableError::Empty { column: self.name, row })
    }
}
